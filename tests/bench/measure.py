"""Runs one command and tells what it cost: CPU, time, memory; and, under strace, what it wrote to storage."""

import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from scratch import BenchError, last_line, signal_group

# The program is started by a shell that then leaves it to us. Forked from here directly, its peak memory as the kernel
# reports it would start at that of this interpreter, since a process inherits the high-water mark across exec. The
# `read` holds it back until the shell is gone and the clock runs.
LAUNCH = 'exec 3<&0; { read -r _ <&3 && exec 3<&- "$@"; } >"$BENCH_OUT" 2>"$BENCH_ERR" & echo $!'

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice")
SECOND_FILE = ("copy_file_range", "splice")  # these write to the second file they name
SYNCS = ("fsync", "fdatasync", "sync_file_range", "msync", "sync", "syncfs")
CALL = re.compile(r"^(\w+)\((.*)\) += (\d+)")
FILE = re.compile(r"\d+<([^>]*)>")


@dataclass
class Cost:
    """What one run of a command cost."""

    cpu: float  # seconds, user and system
    wall: float  # seconds
    peak: int  # bytes resident


@dataclass
class Storage:
    """What one run of a command did to the files below a directory."""

    written: int  # bytes
    syncs: int


def run(argv, scratch, *, out=None, env=None, timeout=60):
    """Runs a command to its end; anything but exit status 0 is a `BenchError`."""
    out = out or scratch.root / "measured.out"
    err = scratch.root / "measured.err"
    name = os.path.basename(str(argv[0]))
    environment = os.environ | (env or {}) | {"BENCH_OUT": str(out), "BENCH_ERR": str(err)}
    with subprocess.Popen(
        ["sh", "-c", LAUNCH, "sh", *map(str, argv)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=scratch.root,
        env=environment, start_new_session=True) as shell:  # fmt: skip
        pid = int(shell.stdout.readline())
        shell.wait(timeout)
        ended = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            start = time.monotonic()
            shell.stdin.write(b"\n")
            shell.stdin.flush()
            in_time = poll.poll(timeout * 1000)
            wall = time.monotonic() - start
        finally:
            os.close(ended)
            signal_group(shell.pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
    if not in_time:
        raise BenchError(f"{name} did not end within {timeout} s: {last_line(err.read_text(errors='replace'))}")
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise BenchError(f"{name} ended with status {code}: {last_line(err.read_text(errors='replace'))}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024)


def run_traced(argv, scratch, directory, **options):
    """Runs a command under strace and counts what it wrote to and synced of files below `directory`."""
    traces = scratch.directory(f"strace-{time.monotonic_ns()}")
    calls = ",".join(WRITES + SYNCS)
    strace = ["strace", "-ff", "-qq", "-y", "-s", "0", "-e", f"trace={calls}", "-e", "signal=none", "-o", traces / "t"]
    run([*strace, *argv], scratch, **options)
    logs = list(traces.iterdir())
    if not logs:
        raise BenchError("strace left no record of the run")
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    return count_storage(lines, str(directory.resolve()))


def count_storage(lines, directory):
    """Adds up the calls of a strace record (`-y`, one file per thread) that concern files below `directory`."""
    storage = Storage(0, 0)
    for line in lines:
        call = CALL.match(line)
        if not call:
            continue
        name, arguments, result = call.groups()
        files = FILE.findall(arguments)
        if name in SYNCS:
            # The calls without a file (sync, msync) cannot be placed: they count.
            storage.syncs += not files or inside(files[0], directory)
        elif files and inside(files[name in SECOND_FILE], directory):
            storage.written += int(result)
    return storage


def inside(path, directory):
    """Whether a path lies below a directory, or is it."""
    return path == directory or path.startswith(directory + "/")
