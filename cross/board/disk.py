"""A disk that loses its cache with its power: an NBD server for one QEMU.

What the guest writes stays in the cache until the guest flushes it. When the power fails, each page of 4 KiB that was written and
not flushed holds what it held at the last flush, or any of what was written to it since, each page by itself: writes are lost, torn
and reordered, as the contract of a disk with a volatile write cache allows. What was flushed is there. A page is whole in each case,
as on flash: file systems rely on it, ext4 for its superblock.

The protocol is NBD's fixed newstyle handshake with simple replies (doc/proto.md of NetworkBlockDevice/nbd).
"""

import socket
import struct
import threading

SECTOR, PAGE = 512, 4096

# Handshake
MAGIC, OPTION_MAGIC, REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPT_ABORT, OPT_GO = 2, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 2**31 + 1
INFO_EXPORT = 0
# Transmission
HAS_FLAGS, SEND_FLUSH, SEND_FUA = 1, 4, 8
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = range(4)
FUA = 1
EINVAL = 22


class Disk:
    """A medium and its cache. Lives through power cuts; the board's QEMU is its one client."""

    def __init__(self, path, medium):
        self.medium = bytearray(medium)
        self.cache = {}  # page: what it held since it was flushed, the newest last
        self.changes = 0  # requests to write or flush, ever
        self.halt_at = None
        self.halted = threading.Event()
        self.thread = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)

    def power_on(self):
        """Serves the next client."""
        self.halt_at = None
        self.halted.clear()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def halt_after(self, changes):
        """Does not end the last of that many requests to write or flush, nor does anything after it: sets `halted` instead."""
        self.halt_at = self.changes + changes

    def power_off(self, random, survival):
        """The power has failed: the client is gone. A page of the cache reaches the medium with probability `survival`.

        Returns how many pages are not what was written to them last, and how many were in the cache.
        """
        self.thread.join()
        lost, cached = 0, len(self.cache)
        for page, versions in sorted(self.cache.items()):
            kept = random.choice(versions) if random.random() < survival else None
            lost += kept != versions[-1]
            if kept is not None:
                self._keep(page, kept)
        self.cache.clear()
        return lost, cached

    def replace(self, medium):
        """Puts another disk in; the power is off."""
        self.medium = bytearray(medium)

    def _serve(self):
        client, _ = self.listener.accept()
        with client, client.makefile("rb") as requests:
            try:
                if self._shake_hands(client, requests):
                    while self._answer(client, requests):
                        pass
            except (EOFError, ConnectionError):
                pass  # QEMU was killed: that is the power cut

    def _shake_hands(self, client, requests):
        client.sendall(MAGIC + OPTION_MAGIC + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES))
        exactly(requests, 4)  # the client's flags
        while True:
            magic, option, length = struct.unpack(">8sII", exactly(requests, 16))
            if magic != OPTION_MAGIC:
                raise ValueError(f"an NBD option begins with {magic!r}")
            exactly(requests, length)

            def reply(kind, data=b"", option=option):
                client.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

            if option == OPT_GO:
                flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA
                reply(REP_INFO, struct.pack(">HQH", INFO_EXPORT, len(self.medium), flags))
                reply(REP_ACK)
                return True
            if option == OPT_ABORT:
                reply(REP_ACK)
                return False
            reply(REP_ERR_UNSUP)

    def _answer(self, client, requests):
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", exactly(requests, 28))
        if magic != REQUEST_MAGIC:
            raise ValueError(f"an NBD request begins with {magic:#x}")
        data = exactly(requests, length) if kind == WRITE else b""
        error, answer = 0, b""
        if kind == DISCONNECT:
            return False
        if kind in (WRITE, FLUSH):
            self.changes += 1
            if self.halt_at is not None and self.changes >= self.halt_at:
                if kind == WRITE:
                    self._write(offset, data, False)  # under way: it may be on the medium, or not
                self.halted.set()
                requests.read()  # to the end: until QEMU is killed
                return False
        if kind == FLUSH:
            self._flush()
        elif kind not in (READ, WRITE) or offset % SECTOR or length % SECTOR or offset + length > len(self.medium):
            error = EINVAL
        elif kind == READ:
            answer = self._read(offset, length)
        else:
            self._write(offset, data, flags & FUA)
        client.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, error, cookie) + answer)
        return True

    def _read(self, offset, length):
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        pages = b"".join(self._page(page) for page in range(first, end))
        return pages[offset - first * PAGE :][:length]

    def _write(self, offset, data, durable):
        at = 0
        while at < len(data):
            page, within = divmod(offset + at, PAGE)
            part = data[at : at + PAGE - within]
            old = self._page(page)
            new = old[:within] + part + old[within + len(part) :]
            if durable:
                self.cache.pop(page, None)
                self._keep(page, new)
            else:
                self.cache.setdefault(page, []).append(new)
            at += len(part)

    def _flush(self):
        for page, versions in self.cache.items():
            self._keep(page, versions[-1])
        self.cache.clear()

    def _page(self, page):
        return self.cache[page][-1] if page in self.cache else bytes(self.medium[page * PAGE : (page + 1) * PAGE])

    def _keep(self, page, content):
        self.medium[page * PAGE : (page + 1) * PAGE] = content


def exactly(stream, length):
    """That many bytes, or EOFError."""
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
