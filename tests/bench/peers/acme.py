"""`lego` renewing at `pebble`: ACME (RFC 8555) between Debian's Go client and the small CA its protocol is tested with.

Measured is `lego renew`, which makes a new key each time. Pebble is told to leave out what it does to unsettle its
clients: random refusals of nonces and sleeps before validation. Authorisations stay valid between renewals, as they do
at a public CA for certificates renewed every few minutes, so there is no challenge to answer: lego's cheapest case.
"""

import json

from proxy import CountingProxy
from scratch import BenchError, free_port, listens, make_authority, make_server_certificate, need, tool

DOMAIN = "gateway-0042.fleet.example.com"
CALM = {"PEBBLE_VA_ALWAYS_VALID": "1", "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "100"}


class Acme:
    """A device that renews."""

    name = "lego"
    packages = ("lego", "pebble")
    out = None

    def __init__(self, scratch):
        need(*self.packages, "openssl")
        home = scratch.directory("acme")
        self.storage = scratch.directory("acme", "storage")
        authority, authority_key = make_authority(home, "acme")
        certificate, key = make_server_certificate(home, authority, authority_key)
        port = free_port()
        config = home / "pebble.json"
        config.write_text(json.dumps({"pebble": {
            "listenAddress": f"127.0.0.1:{port}", "managementListenAddress": "", "certificate": str(certificate),
            "privateKey": str(key), "httpPort": free_port(), "tlsPort": free_port()}}))  # fmt: skip
        scratch.service("pebble", ["pebble", "-config", config], listens(port), env=CALM)
        self.env = {"LEGO_CA_CERTIFICATES": str(authority)}
        self.proxy = CountingProxy(port)
        self._certificate = self.storage / "certificates" / f"{DOMAIN}.crt"
        self._before = None

    def enrol(self, run):
        """The account and the first certificate."""
        run([*self._command(), "run"])
        self.finish()

    def prepare(self):
        """Nothing: lego makes its own key and request."""

    def command(self):
        """The command that is measured. Left to itself without a terminal, lego first sleeps for up to eight minutes."""
        return [*self._command(), "renew", "--days", "36500", "--no-random-sleep"]

    def finish(self):
        """Checks that there is a new certificate."""
        serial = tool("openssl", "x509", "-in", self._certificate, "-noout", "-serial")
        if serial == self._before:
            raise BenchError("lego renew left the old certificate in place")
        self._before = serial

    def _command(self):
        # The port of the HTTP challenge is bound and never asked: pebble takes every challenge for answered.
        solver = f"127.0.0.1:{free_port()}"
        return ["lego", "--server", f"https://127.0.0.1:{self.proxy.port}/dir", "--accept-tos", "--email", "bench@example.com",
                "--domains", DOMAIN, "--http", "--http.port", solver, "--path", self.storage]  # fmt: skip
