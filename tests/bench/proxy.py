"""A TCP relay on loopback that counts the bytes of both directions: the same yardstick for every contender.

Counted is what TCP carries (TLS records and handshake), without TCP and IP headers.
"""

import socket
import threading
import time

from scratch import BenchError


class CountingProxy:
    """Relays connections on a free port of 127.0.0.1 to another port, until the process ends."""

    def __init__(self, target_port):
        self._target = ("127.0.0.1", target_port)
        self._lock = threading.Lock()
        self._open = 0
        self.sent = self.received = self.connections = 0  # seen from the client
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def take(self, patience=5.0):
        """Waits until no connection is open; (sent, received, connections) since the last call."""
        end = time.monotonic() + patience
        while self._open:
            if time.monotonic() > end:
                raise BenchError(f"a connection to port {self._target[1]} stayed open {patience} s after the client had ended")
            time.sleep(0.002)
        with self._lock:
            counted = self.sent, self.received, self.connections
            self.sent = self.received = self.connections = 0
        return counted

    def _serve(self):
        while True:
            client, _ = self._listener.accept()
            with self._lock:
                self._open += 1
                self.connections += 1
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client):
        try:
            with client, socket.create_connection(self._target, timeout=5) as server:
                server.settimeout(None)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                back = threading.Thread(target=self._pump, args=(server, client, "received"), daemon=True)
                back.start()
                self._pump(client, server, "sent")
                back.join()
        except OSError:
            pass  # a refused or broken connection is the contender's to report
        finally:
            with self._lock:
                self._open -= 1

    def _pump(self, source, sink, counter):
        try:
            while data := source.recv(65536):
                with self._lock:
                    setattr(self, counter, getattr(self, counter) + len(data))
                sink.sendall(data)
        except OSError:
            pass
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
