"""The board's disk, seen from outside: as it leaves the factory, and as a power cut leaves it."""

import shutil
import subprocess

from machine import Failure

SIZE = 32 << 20
MAKE = {"ext4": ["mke2fs", "-q", "-t", "ext4", "-F"], "vfat": ["mkfs.vfat"]}


def new(filesystem, work):
    """An empty file system."""
    path = work / "medium"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    subprocess.run([*MAKE[filesystem], path], check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


def mend(content, work):
    """What a board has to do before it mounts FAT after a power cut: without it damage adds up, until the kernel writes no more."""
    path = work / "medium"
    path.write_bytes(content)
    # 1: errors were corrected.
    mended = subprocess.run(["fsck.vfat", "-a", path], capture_output=True, text=True, check=False)
    if mended.returncode > 1:
        raise Failure(f"fsck.vfat of the data disk ends with {mended.returncode}\n{mended.stdout.strip()}")
    return path.read_bytes()


def check_outputs(content, output, work):
    """Checks what programs on the board would find: key and certificate of an output on ext4 fit, or there are none yet."""
    path, dump = work / "medium", work / "dump"
    path.write_bytes(content)
    # Plays the journal back, as the board will. 1: errors were corrected, which is so after each power cut.
    checked = subprocess.run(["e2fsck", "-fy", path], capture_output=True, text=True, check=False)
    if checked.returncode > 1:
        raise Failure(f"e2fsck of the data disk ends with {checked.returncode}\n{checked.stdout.strip()}")
    shutil.rmtree(dump, ignore_errors=True)
    dump.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump /{output} {dump}", path], check=True, capture_output=True)
    current = dump / output / "..current"
    if not current.exists():
        return False
    certified = ["openssl", "x509", "-noout", "-pubkey", "-in", current / "tls.crt"]
    kept = ["openssl", "pkey", "-pubout", "-in", current / "tls.key"]
    certified, kept = (subprocess.run(command, check=False, capture_output=True).stdout for command in (certified, kept))
    if not kept or certified != kept:
        raise Failure(f"key and certificate in /data/{output} do not fit after a power cut\nlook at the disk")
    return True
