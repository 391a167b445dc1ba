"""Key stores to measure: files, a software TPM, SoftHSM2, and the software TPM as a PKCS#11 token (tpm2-pkcs11)."""

import contextlib
import os
import socket
from pathlib import Path

from scratch import BenchError, free_port, need, tool

PIN = "bench-pin"
TICKS = os.sysconf("SC_CLK_TCK")


class FileStore:
    """Keys in files."""

    name = "file"
    kind = "file"

    def __init__(self, _scratch):
        self.options, self.env = [], {}

    @property
    def yaml(self):
        """The agent's `keystore`."""
        fields = [f"{option[2:].replace('-', '_')}: \"{value}\"" for option, value in zip(self.options[::2], self.options[1::2])]
        return "{" + ", ".join([f"type: {self.kind}", *fields]) + "}"

    def cpu(self):
        """Seconds of processor time that the store used in a process of its own; None where it has none."""
        return None


class Tpm(FileStore):
    """swtpm, which stands for a TPM: its processor time is the TPM's time."""

    name = "TPM"
    kind = "tpm"

    def __init__(self, scratch):
        super().__init__(scratch)
        need("swtpm", "libtss2-dev")
        self._swtpm, self.tcti = start_swtpm(scratch)
        self.options, self.env = ["--tcti", self.tcti], {"TSS2_LOG": "all+none"}

    def cpu(self):
        return processor_time(self._swtpm.pid)


class SoftHsm(FileStore):
    """SoftHSM2: its time is part of the program's own."""

    name = "SoftHSM2"
    kind = "pkcs11"

    def __init__(self, scratch):
        super().__init__(scratch)
        need("softhsm2")
        home = scratch.directory(f"softhsm-{id(self)}")
        tokens, configuration, pin = home / "tokens", home / "softhsm2.conf", home / "pin"
        tokens.mkdir()
        configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        pin.write_text(PIN)
        self.env = {"SOFTHSM2_CONF": str(configuration)}
        tool("env", f"SOFTHSM2_CONF={configuration}", "softhsm2-util", "--init-token", "--free", "--label", "bench", "--pin", PIN,
             "--so-pin", PIN)  # fmt: skip
        module = library("softhsm/libsofthsm2.so")
        self.options = ["--module", str(module), "--token", "bench", "--pin-path", str(pin)]


class Tpm2Pkcs11(FileStore):
    """tpm2-pkcs11 through tpm2-abrmd on swtpm."""

    name = "tpm2-pkcs11"
    kind = "pkcs11"

    def __init__(self, scratch):
        super().__init__(scratch)
        need("dbus", "libtpm2-pkcs11-1", "libtpm2-pkcs11-tools", "libtss2-tcti-tabrmd0", "swtpm", "tpm2-abrmd", "tpm2-tools")
        self._swtpm, tcti = start_swtpm(scratch)
        home = scratch.directory(f"tpm2-pkcs11-{id(self)}")
        bus, pin, through = home / "bus", home / "pin", "tabrmd:bus_type=session"
        pin.write_text(PIN)
        self.env = {
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}", "TPM2_PKCS11_STORE": str(home / "store"), "TPM2_PKCS11_TCTI": through,
            "TPM2_PKCS11_LOG_LEVEL": "0", "TPM2TOOLS_TCTI": through, "TSS2_LOG": "all+none"}  # fmt: skip
        words = ["env", *(f"{name}={value}" for name, value in self.env.items())]

        def answers():
            try:
                return bool(tool(*words, "tpm2_getcap", "properties-fixed"))
            except BenchError:
                return False

        scratch.service("dbus", ["dbus-daemon", "--session", "--nofork", f"--address=unix:path={bus}"], bus.exists)
        scratch.service("tpm2-abrmd", [*words, "tpm2-abrmd", "--session", "--allow-root", f"--tcti={tcti}"], answers)
        (home / "store").mkdir()
        tool(*words, "tpm2_ptool", "init", "--path", home / "store")
        tool(*words, "tpm2_ptool", "addtoken", "--pid=1", "--label", "bench", "--sopin", PIN, "--userpin", PIN, "--path",
             home / "store")  # fmt: skip
        self.options = ["--module", str(library("pkcs11/libtpm2_pkcs11.so")), "--token", "bench", "--pin-path", str(pin)]

    def cpu(self):
        return processor_time(self._swtpm.pid)


STORES = {store.name: store for store in (FileStore, Tpm, SoftHsm, Tpm2Pkcs11)}


def start_swtpm(scratch):
    """A new software TPM; its process, and where libtss2 finds it."""
    for _ in range(10):
        try:
            return try_swtpm(scratch, two_free_ports())
        except BenchError as error:
            failed = error  # another program took a port in the meantime
    raise failed


def two_free_ports():
    """A free port of the loopback interface whose next is free too: libtss2 expects the control channel there."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def try_swtpm(scratch, port):
    """swtpm on these two ports."""
    state = scratch.directory(f"swtpm-{port}")
    ready = state / "pid"
    swtpm = scratch.service(f"swtpm-{port}", [
        "swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate", f"dir={state}",
        "--server", f"type=tcp,port={port},bindaddr=127.0.0.1", "--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1",
        "--pid", f"file={ready}"], ready.exists)  # fmt: skip
    return swtpm, f"swtpm:host=127.0.0.1,port={port}"


def processor_time(pid):
    """Seconds of processor time of a running process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def library(path):
    """A library below one of the usual directories."""
    found = next((base / path for base in (Path("/usr/lib"), *Path("/usr/lib").glob("*-linux-gnu")) if (base / path).exists()), None)
    if found is None:
        raise BenchError(f"there is no {path} below /usr/lib")
    return found
