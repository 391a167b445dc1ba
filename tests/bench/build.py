"""Builds what is measured, as it ships."""

import json
import platform
import subprocess
from pathlib import Path

from scratch import BenchError, last_line

REPOSITORY = Path(__file__).resolve().parents[2]


HOST = f"{platform.machine()}-unknown-linux-gnu"


def build_agent(features=("agent",), target=HOST):
    """The agent in the size profile; returns the program's path."""
    options = ("--profile", "edge", "--no-default-features", "--features", ",".join(features), "--bin", "boundkey")
    return cargo_build(*options, cargo=cargo_for(target))[0]


def build_server():
    """The server and the operator's program in the speed profile; returns the directory they are in."""
    programs = ("--bin", "boundkey-auth", "--bin", "boundkeyctl")
    return cargo_build("--release", "--no-default-features", "--features", "auth", *programs)[0].parent


def build_with_stores():
    """Server, operator's program and the two load generators with the hardware key stores; returns the directory they are in."""
    programs = ("--bin", "boundkey-auth", "--bin", "boundkeyctl", "--example", "boundkey-load", "--example", "boundkey-keys")
    made = cargo_build("--release", "--features", "tpm,pkcs11", *programs)
    return next(path.parent for path in made if path.parent.name != "examples")


def build_for_hold():
    """Server, operator's program and the flood; returns the directory they are in."""
    made = cargo_build("--release", "--bin", "boundkey-auth", "--bin", "boundkeyctl", "--example", "boundkey-hold")
    return next(path.parent for path in made if path.parent.name != "examples")


def build_load():
    """The load generator for the server; returns the program's path."""
    return cargo_build("--release", "--example", "boundkey-load")[0]


def cargo_for(target):
    """The command that is cargo for `target`."""
    return ("cargo",) if target == HOST else ("cross/cargo", target)


def cargo_build(*arguments, cargo=("cargo",), command="build"):
    """Runs `cargo build`, or another command that builds; returns the programs it made."""
    command = [*cargo, command, "--locked", "--message-format=json-render-diagnostics", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as cargo:
        messages = [json.loads(line) for line in cargo.stdout]
    if cargo.returncode:
        raise BenchError(f"cargo build {' '.join(arguments)} failed, see above")
    return [Path(message["executable"]) for message in messages if message.get("executable")]


def crates(features=("agent",), target=HOST):
    """The packages of other people in the agent's tree, as `name version` (what is compiled in, macros included)."""
    command = ["cargo", "tree", "--locked", "--target", target, "-e", "normal", "--no-default-features", "--features", ",".join(features),
               "--prefix", "none", "--no-dedupe", "--format", "{p}"]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"cargo tree failed: {last_line(done.stderr)}")
    # The workspace's own packages are those with a path in brackets; macros carry "(proc-macro)".
    packages = {line.replace(" (proc-macro)", "") for line in done.stdout.splitlines() if line}
    return sorted(package for package in packages if "(" not in package)
