"""The board's root file system: an initramfs of busybox, the agent and its libraries, and what one boot is to do."""

import re
import stat
import subprocess
from pathlib import Path

# Loaded by name at run time, so nothing in the agent's ELF file names it.
LOADED_LATER = "libtss2-tcti-device.so.0"


def base(sysroot, gnu, guest, programs):
    """What is the same in every boot; `programs` are those beside busybox, {name: path}."""
    libraries = Libraries(sysroot, gnu)
    here = Path(__file__).parent
    files = {
        "init": (0o755, (here / "init").read_bytes()),
        "bin/busybox": (0o755, (sysroot / "bin/busybox").read_bytes()),
    }
    for name, path in programs.items():
        files[f"bin/{name}"] = (0o755, path.read_bytes())
        if interpreter := libraries.add_needs(path):
            files[interpreter.lstrip("/")] = (0o755, libraries.find(Path(interpreter).name).read_bytes())
    libraries.add(LOADED_LATER)
    for name, path in libraries.found.items():
        files[f"lib/{gnu}/{name}"] = (0o755, path.read_bytes())
    for module in guest.glob("modules/*.ko"):
        files[f"modules/{module.name}"] = (0o644, module.read_bytes())
    return archive(files, ["data", "dev", "proc", "sys", "tmp"])


class Libraries:
    """Shared libraries of the sysroot, with what they need."""

    def __init__(self, sysroot, gnu):
        self.places = [sysroot / "lib" / gnu, sysroot / "usr/lib" / gnu]
        self.found = {}

    def find(self, name):
        """The file of a library."""
        for place in self.places:
            if (place / name).is_file():
                return place / name
        raise FileNotFoundError(f"no {name} in the sysroot: it lacks a package, see cross/sysroot")

    def add(self, name):
        """Adds a library and all that it needs."""
        if name not in self.found:
            self.found[name] = self.find(name)
            self.add_needs(self.found[name])

    def add_needs(self, program):
        """Adds all that a program or library needs; returns the interpreter, if it asks for one."""
        said = subprocess.run(["readelf", "-dlW", program], check=True, capture_output=True, text=True).stdout
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", said):
            self.add(name)
        interpreter = re.search(r"program interpreter: (.*)\]", said)
        return interpreter and interpreter[1]


def archive(files, directories=()):
    """A cpio archive (newc) of files {path: (mode, content)}. Archives can follow one another."""
    parents = {str(parent) for path in files for parent in Path(path).parents} - {"."}
    entries = [(path, stat.S_IFDIR | 0o755, b"") for path in sorted(parents | set(directories))]
    entries += [(path, stat.S_IFREG | mode, content) for path, (mode, content) in sorted(files.items())]
    entries.append(("TRAILER!!!", 0, b""))
    packed = bytearray()
    for number, (path, mode, content) in enumerate(entries, 1):
        name = path.encode() + b"\0"
        #        inode   mode  uid gid links mtime size          device  of the node  length of name  checksum
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0]
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        packed += bytes(-len(packed) % 4) + content
        packed += bytes(-len(packed) % 4)
    return bytes(packed)
