"""The auth endpoint that the board joins, and its operator: the real programs, on this machine."""

import json
import os
import subprocess
from pathlib import Path

from machine import Failure, end, start, wait_until

# Where a guest of QEMU's user network finds this machine.
HOST = "10.0.2.2"

ROLE = """kind: role
version: v1
metadata: {name: board}
spec:
  allow: {dns_names: ["board.example"]}
---
kind: bot
version: v1
metadata: {name: board}
spec: {roles: [board]}
"""
TOKEN = """kind: token
version: v2
metadata: {{name: {name}}}
spec:
  roles: [Bot]
  bot_name: board
  join_method: bound_keypair
  bound_keypair: {{onboarding: {{registration_secret: {secret}}}, recovery: {{limit: 100}}}}
"""


class Endpoint:
    """One cluster, with a clock that can be set ahead."""

    def __init__(self, programs, directory, logs):
        self.programs, self.data, self.addr_file = programs, directory / "auth", directory / "addr"
        self.logs = logs
        self.port = 0
        self.days = 0
        self.process = None
        # The clock that the tests have: it leaves nothing behind when what runs with it is killed.
        self.clock, self.offset = directory / "wall_clock.so", directory / "offset"
        source = Path(__file__).resolve().parents[2] / "tests/support/wall_clock.c"
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", self.clock], check=True)
        init = [programs / "boundkey-auth", "init", "--data-dir", self.data, "--cluster-name", "board.example", "--name", HOST]
        self.pin = json.loads(said(*init, "--format", "json"))["ca_pin"]

    def run(self):
        """Starts it, on the port that it had before, `days` ahead of now."""
        self.addr_file.unlink(missing_ok=True)
        command = [self.programs / "boundkey-auth", "start", "--data-dir", self.data]
        command += ["--listen", f"127.0.0.1:{self.port}", "--addr-file", self.addr_file]
        self.offset.write_text(str(self.days * 86400))
        environment = {**os.environ, "LD_PRELOAD": str(self.clock), "WALL_CLOCK": str(self.offset)}
        with open(self.logs / "auth.log", "a", encoding="utf-8") as log:
            self.process = start(command, stdout=log, stderr=log, env=environment)
        wait_until("the auth endpoint's address", lambda: self.addr_file.exists() or self.process.poll() is not None)
        if self.process.poll() is not None:
            raise Failure(f"the auth endpoint ended\nsee {self.logs}/auth.log")
        self.port = int(self.addr_file.read_text().strip().rpartition(":")[2])

    def stop(self):
        """Pulls its plug."""
        if self.process is not None:
            end(self.process)

    def let_days_pass(self, days):
        """Its clock goes ahead; it starts anew."""
        self.stop()
        self.days += days
        self.run()

    def create(self, document):
        """Applies documents."""
        subprocess.run(self._ctl("create", "-f", "-"), input=document, check=True, text=True, stdout=subprocess.DEVNULL)

    def make_role(self):
        """The bot that all tokens are for."""
        self.create(ROLE)

    def make_token(self, name, secret):
        """A token for one device."""
        self.create(TOKEN.format(name=name, secret=secret))

    def status(self, token):
        """What the server knows of the device of this token."""
        return json.loads(self.ctl("get", f"token/{token}", "--format", "json"))[0]["status"]["bound_keypair"]

    def locks(self):
        """Every lock there is."""
        return json.loads(self.ctl("get", "lock", "--format", "json"))

    def events(self, token):
        """The audit log's events of this token, the oldest first."""
        lines = self.ctl("audit", "--token", token, "--format", "json").splitlines()
        return [json.loads(line)["event"] for line in lines]

    def ctl(self, *words):
        """Runs boundkeyctl, which must succeed."""
        return said(*self._ctl(*words))

    def _ctl(self, *words):
        return [self.programs / "boundkeyctl", "--data-dir", self.data, *words]


def said(*command):
    """What a command that must succeed prints."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise Failure(f"{command[0]} ended with {ran.returncode}\n{ran.stderr.strip()}")
    return ran.stdout
