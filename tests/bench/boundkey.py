"""boundkey itself, as one of the contenders: a device with one X.509 output that renews at an auth endpoint."""

import json
import re
import subprocess
from pathlib import Path

from proxy import CountingProxy
from scratch import BenchError, stop, tool, written
from stores import FileStore

DNS_NAME = "gateway-0042.fleet.example.com"
NAME = "gateway-0042"

RESOURCES = f"""\
kind: role
version: v1
metadata: {{name: gateway}}
spec: {{allow: {{dns_names: ["{DNS_NAME}"]}}}}
---
kind: bot
version: v1
metadata: {{name: {NAME}}}
spec: {{roles: [gateway]}}
---
kind: token
version: v2
metadata: {{name: {NAME}}}
spec:
  roles: [Bot]
  bot_name: {NAME}
  join_method: bound_keypair
  bound_keypair: {{recovery: {{limit: 1}}}}
"""

ROW = 40  # tokens that take turns at one place of the load
LOAD_TOKEN = """\
kind: token
version: v2
metadata: {{name: {name}}}
spec:
  roles: [Bot]
  bot_name: {bot}
  join_method: bound_keypair
  bound_keypair: {{onboarding: {{registration_secret: {secret}}}}}
"""

CONFIG = """\
version: v1
auth_server: 127.0.0.1:{port}
ca_pins: ["{pin}"]
onboarding:
  join_method: bound_keypair
  token: {name}
  bound_keypair: {{registration_secret_path: {secret}}}
keystore: {keystore}
storage: {{type: directory, path: {storage}}}
outputs:
  - type: x509
    destination: {{type: directory, path: {output}}}
    dns_names: [{dns_name}]
"""


class Boundkey:
    """A device that renews. Its output goes to a directory outside its storage, as to /run on a device."""

    name = "boundkey"
    out = None

    def __init__(self, scratch, agent, server_directory, name="boundkey", store=None, ca=None):
        """The device's key is in `store`, the server's keys in `ca`; in files unless given."""
        store, ca = store or FileStore(scratch), ca or FileStore(scratch)
        home = scratch.directory(name)
        self.storage, self._output = scratch.directory(name, "storage"), scratch.directory(name, "output")
        self.env = store.env
        self._agent, self._scratch = agent, scratch
        data, address = home / "server", home / "address"
        auth, ctl = server_directory / "boundkey-auth", server_directory / "boundkeyctl"
        init = [auth, "init", "--data-dir", data, "--cluster-name", "bench", "--format", "json"]
        init += ["--ca-keystore", ca.kind, *ca.options] if ca.options else []
        made = json.loads(tool("env", *(f"{variable}={value}" for variable, value in ca.env.items()), *init))
        serve = [auth, "start", "--data-dir", data, "--listen", "127.0.0.1:0", "--addr-file", address]
        scratch.service(f"boundkey-auth-{name}", serve, written(address), env=ca.env)
        self.proxy = CountingProxy(int(address.read_text().rsplit(":", 1)[1]))
        tool(ctl, "--data-dir", data, "create", "-f", "-", stdin=RESOURCES.encode())
        token = json.loads(tool(ctl, "--data-dir", data, "get", f"token/{NAME}", "--with-secrets", "--format", "json"))[0]
        self._ctl, self._pin, self._address = [ctl, "--data-dir", data], made["ca_pin"], address.read_text().strip()
        secret = home / "secret"
        secret.write_text(token["status"]["bound_keypair"]["registration_secret"])
        secret.chmod(0o600)
        self._config = home / "boundkey.yaml"
        self._config.write_text(CONFIG.format(
            port=self.proxy.port, pin=made["ca_pin"], name=NAME, secret=secret, storage=self.storage, output=self._output,
            dns_name=DNS_NAME, keystore=store.yaml))  # fmt: skip
        self._generation = 0

    def enrol(self, run):
        """The first join, by registration secret."""
        run(self.command())
        self.finish()

    def prepare(self):
        """Nothing: the agent makes its own keys and requests."""

    def command(self):
        """The command that is measured."""
        return [self._agent, "start", "-c", self._config, "--oneshot"]

    def finish(self):
        """Checks that it was a renewal, and that the output is a certificate openssl accepts."""
        status = self._status()
        if status["generation"] != self._generation + 1 or status["recovery"]["count"] != 1:
            raise BenchError(f"the agent did not renew: generation {status['generation']} after {self._generation}, "
                             f"{status['recovery']['count']} recoveries")  # fmt: skip
        self._generation += 1
        tool("openssl", "verify", "-CAfile", self._output / "ca.crt", self._output / "tls.crt")

    def idle(self, seconds):
        """Starts the daemon, lets it renew and then wait; its `VmRSS` and `VmHWM` in bytes, and its threads."""
        daemon = self._scratch.service("boundkey", self.command()[:-1], lambda: self._status()["generation"] > self._generation)
        try:
            daemon.wait(seconds)
        except subprocess.TimeoutExpired:
            fields = dict(re.findall(r"^(\w+):\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text(), re.MULTILINE))
        else:
            raise BenchError(f"the daemon ended by itself with status {daemon.returncode}")
        stop(daemon)
        self._generation += 1
        return int(fields["VmRSS"]) * 1024, int(fields["VmHWM"]) * 1024, int(fields["Threads"])

    def load(self, program, devices, seconds):
        """Joins per second of the server with so many devices at once, for so long; its commits are durable. One token has a pace, so
        each place has a row of them."""
        secret = "load-load-load-load"
        tokens = "---\n".join(LOAD_TOKEN.format(name=f"load-{n}", bot=NAME, secret=secret) for n in range(devices * ROW))
        tool(*self._ctl, "create", "-f", "-", stdin=tokens.encode())
        options = {"server": self._address, "ca-pin": self._pin, "secret": secret, "devices": devices, "each": ROW,
                   "seconds": seconds}  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return json.loads(tool(program, *words))["per_second"]

    def _status(self):
        words = [f"{variable}={value}" for variable, value in self.env.items()]
        return json.loads(tool("env", *words, self._agent, "status", "-c", self._config, "--format", "json"))
