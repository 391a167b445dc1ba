"""What every contender of the benchmark needs around it: packages, a scratch directory, services, certificates.

Nothing outlives the run: services are killed and the directory removed on return, error, Ctrl-C and SIGTERM.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A failure that is told to the person in one sentence."""


def need(*packages):
    """Installs those of the Debian `packages` that are missing. Elsewhere, what is missing shows when it is started."""
    if not shutil.which("dpkg-query"):
        return
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    missing = [package for package in packages if f"{package} installed" not in listed]
    if not missing:
        return
    install = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "-qq", "--no-install-recommends", *missing]
    hint = f"install by hand: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0:
        raise BenchError(f"missing packages and not root; {hint}")
    print(f"bench: installing {' '.join(missing)}", file=sys.stderr)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, ["apt-get", "-qq", "update"], install):
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if command is install and done.returncode == 0:
            return
    raise BenchError(f"apt-get failed ({last_line(done.stderr)}); {hint}")


def versions(*packages):
    """The Debian `packages` with their versions, as one line."""
    if not shutil.which("dpkg-query"):
        return ", ".join(packages)
    return tool("dpkg-query", "-W", "-f", "${Package} ${Version}, ", *packages).decode().rstrip(", ")


def last_line(text):
    """The last line of `text` that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def tool(*argv, stdin=None):
    """Runs a short helper such as openssl and returns its output."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{Path(argv[0]).name} could not run: {error}") from error
    if done.returncode:
        raise BenchError(f"{' '.join(map(str, argv[:2]))} failed: {last_line(done.stderr.decode(errors='replace'))}")
    return done.stdout


def free_port():
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_authority(directory, name):
    """A P-256 CA: `directory/NAME.key` and `.crt`."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.crt"
    tool("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-subj", f"/CN=bench {name}", "-keyout", key, "-out", certificate)  # fmt: skip
    return certificate, key


def make_server_certificate(directory, authority, authority_key):
    """A TLS server certificate for loopback under that CA: `directory/server.crt` and `.key`."""
    key, certificate = directory / "server.key", directory / "server.crt"
    tool("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-CA", authority, "-CAkey", authority_key, "-subj", "/CN=localhost", "-addext", "basicConstraints=critical,CA:FALSE",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate)  # fmt: skip
    return certificate, key


class Scratch:
    """A scratch directory and the services running in it, for one `with` block."""

    def __init__(self):
        self.root = None
        self._services = []

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
        # Measured programs are grandchildren (see measure.py): this process is the one that reaps them.
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.root = Path(tempfile.mkdtemp(prefix="boundkey-bench."))
        return self

    def __exit__(self, *_):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for service in reversed(self._services):
            stop(service)
        shutil.rmtree(self.root, ignore_errors=True)

    def directory(self, *parts):
        """A new private directory below the root."""
        path = self.root.joinpath(*parts)
        path.mkdir(mode=0o700, parents=True)
        return path

    def service(self, name, argv, ready, *, env=None, timeout=20):
        """Starts a long-running program, and returns when `ready()` is true."""
        log = self.root / f"{name}.log"
        with log.open("wb") as out:
            try:
                process = subprocess.Popen(
                    [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.root,
                    env=os.environ | (env or {}), start_new_session=True,
                    preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))  # fmt: skip
            except OSError as error:
                raise BenchError(f"{name} could not be started: {error}") from error
        self._services.append(process)
        end = time.monotonic() + timeout
        while not ready():
            said = last_line(log.read_text(errors="replace"))
            if process.poll() is not None:
                raise BenchError(f"{name} ended with status {process.returncode} at its start: {said}")
            if time.monotonic() > end:
                raise BenchError(f"{name} was not ready after {timeout} s: {said}")
            time.sleep(0.02)
        return process


def listens(port):
    """A readiness test: something accepts connections on this loopback port."""

    def ready():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ready


def written(path):
    """A readiness test: the file is there, and its first line is complete."""
    return lambda: path.exists() and path.read_text().strip() != ""


def stop(process):
    """Ends a service and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_group(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def signal_group(group, number):
    """Signals what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
