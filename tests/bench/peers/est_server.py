#!/usr/bin/env python3
"""The smallest EST server (RFC 7030) that strongSwan's `pki --est` can enrol at, for measuring that client.

Answers `simpleenroll` (HTTP basic authentication) and `simplereenroll` (the client's certificate). Certificates are
issued by openssl. What goes over the wire is kept as small as the protocol allows, so that the client is measured at
its best: one TLS record per answer, no session tickets, no optional headers.
"""

import argparse
import base64
import http.server
import ssl
import subprocess
import tempfile
from pathlib import Path


class Enrol(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    wbufsize = -1  # headers and body leave in one piece

    def do_POST(self):
        """A PKCS#10 request in, a PKCS#7 with the certificate out (RFC 7030, section 4.2)."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        step = self.path.removeprefix("/.well-known/est/")
        if step == "simpleenroll":
            allowed = self.headers.get("Authorization") == self.server.authorization
        else:
            allowed = step == "simplereenroll" and bool(self.connection.getpeercert())
        if not allowed:
            self.answer(401, "text/plain", b"not authorised\n")
            return
        try:
            # In one line: pki 5.9.8 does not read base64 with line breaks.
            issued = base64.b64encode(self.server.issue(base64.b64decode(body)))
        except (ValueError, subprocess.SubprocessError) as error:
            self.log_error("no certificate: %s", error)
            self.answer(400, "text/plain", b"bad request\n")
            return
        self.answer(200, "application/pkcs7-mime; smime-type=certs-only", issued)

    def answer(self, status, kind, body):
        """Sends an answer and ends the connection."""
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Transfer-Encoding", "base64")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


class Server(http.server.HTTPServer):
    """Listens with TLS and holds the CA."""

    def __init__(self, options):
        super().__init__(("127.0.0.1", 0), Enrol)
        self.authority, self.authority_key = options.ca, options.ca_key
        self.authorization = "Basic " + base64.b64encode(options.userpass.encode()).decode()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.num_tickets = 0
        tls.load_cert_chain(options.certificate, options.key)
        tls.load_verify_locations(options.ca)
        tls.verify_mode = ssl.CERT_OPTIONAL
        self.socket = tls.wrap_socket(self.socket, server_side=True)

    def issue(self, request):
        """A certificate for a DER request, as DER PKCS#7."""
        with tempfile.TemporaryDirectory() as directory:
            certificate = Path(directory, "certificate")
            sign = ["openssl", "x509", "-req", "-inform", "DER", "-days", "1", "-out", certificate]
            authority = ["-CA", self.authority, "-CAkey", self.authority_key]
            subprocess.run([*sign, *authority], input=request, capture_output=True, check=True, timeout=20)
            pack = ["openssl", "crl2pkcs7", "-nocrl", "-certfile", certificate, "-outform", "DER"]
            return subprocess.run(pack, capture_output=True, check=True, timeout=20).stdout


def main():
    """Serves until killed; writes the port to `--port-file` once it listens."""
    options = argparse.ArgumentParser(description=__doc__)
    for name in ("--ca", "--ca-key", "--certificate", "--key", "--userpass", "--port-file"):
        options.add_argument(name, required=True)
    options = options.parse_args()
    server = Server(options)
    Path(options.port_file).write_text(f"{server.server_port}\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
