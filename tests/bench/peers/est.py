"""strongSwan `pki --est`: one re-enrolment by EST (RFC 7030) over TLS, proven by the certificate being replaced.

Measured is that one command. The new key and the request, two more commands for a user of it, are made beforehand.
"""

import sys
from pathlib import Path

from proxy import CountingProxy
from scratch import BenchError, make_authority, make_server_certificate, need, tool, written

USERPASS = "device:once"


class Est:
    """A device that re-enrols."""

    name = "pki --est"
    packages = ("strongswan-pki", "libstrongswan-standard-plugins")
    env = None

    def __init__(self, scratch):
        need(*self.packages, "openssl")
        home = scratch.directory("est")
        self.storage = scratch.directory("est", "storage")
        # Two CAs, or the server's TLS library would send the CA along with its certificate.
        self._authority, authority_key = make_authority(home, "devices")
        self._tls_authority, tls_authority_key = make_authority(home, "servers")
        certificate, key = make_server_certificate(home, self._tls_authority, tls_authority_key)
        port_file = home / "port"
        scratch.service(
            "est-server",
            [sys.executable, Path(__file__).with_name("est_server.py"), "--ca", self._authority, "--ca-key", authority_key,
             "--certificate", certificate, "--key", key, "--userpass", USERPASS, "--port-file", port_file],
            written(port_file))  # fmt: skip
        self.proxy = CountingProxy(int(port_file.read_text()))
        self._key, self._certificate = self.storage / "device.key", self.storage / "device.crt"
        self._next_key, self._request = home / "next.key", home / "next.csr"
        self.out = self.storage / "device.crt.new"

    def enrol(self, run):
        """The first certificate, by password."""
        self.prepare()
        run([*self._command(), "--userpass", USERPASS])
        self.finish()

    def prepare(self):
        """A new key and a request for it."""
        tool("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-subj", "/CN=gateway-0042", "-addext", "subjectAltName=DNS:gateway-0042.fleet.example.com",
             "-outform", "DER", "-keyout", self._next_key, "-out", self._request)  # fmt: skip

    def command(self):
        """The command that is measured; its output is the certificate."""
        return [*self._command(), "--cert", self._certificate, "--key", self._key]

    def finish(self):
        """Checks the new certificate and makes it the one to renew."""
        tool("openssl", "verify", "-CAfile", self._authority, self.out)
        certified = tool("openssl", "x509", "-in", self.out, "-noout", "-pubkey")
        if certified != tool("openssl", "pkey", "-in", self._next_key, "-pubout"):
            raise BenchError("pki --est returned a certificate for another key")
        self.out.replace(self._certificate)
        self._next_key.replace(self._key)

    def _command(self):
        url = f"https://localhost:{self.proxy.port}"
        trust = ["--cacert", self._authority, "--cacert", self._tls_authority]
        return ["pki", "--est", "--url", url, "--in", self._request, *trust, "--outform", "pem"]
