"""An emulated machine, QEMU's `virt` with Debian's kernel; and the board: that with a disk of ours, swtpm as TPM 2.0, and power that
can be cut."""

import queue
import re
import signal
import subprocess
import threading
import time

# Longest wait for anything; a slow machine that runs much else boots in a tenth of it.
PATIENCE = 180

PROCESSORS = {"arm64": ("qemu-system-aarch64", "cortex-a57"), "armhf": ("qemu-system-arm", "cortex-a15")}
# What no board says in a boot that is well.
ALARMS = re.compile(r"Kernel panic|Oops|EXT4-fs error|EXT4-fs \(vda\): .*fail|FAT-fs .*error| ERROR |board: ended")


class Failure(Exception):
    """The board, or what it joined, is not as it should be. Two lines: what, and what to look at."""


class Machine:
    """A machine, and its console. What it has beside a processor, each boot says."""

    def __init__(self, arch, cross, directory, logs):
        program, processor = PROCESSORS[arch]
        self.guest = cross / f"guest-{arch}"
        self.command = [cross / "qemu" / "bin" / program, "-cpu", processor, "-M", "virt", "-nodefaults", "-display", "none"]
        self.command += ["-monitor", "none", "-no-reboot", "-serial", "stdio", "-kernel", self.guest / "vmlinuz"]
        self.directory, self.logs = directory, logs
        self.boots = 0
        self.qemu = None

    def open_log(self):
        """The next boot's."""
        self.boots += 1
        self.log = open(self.logs / f"boot-{self.boots:02}.log", "w", encoding="utf-8")

    def boot(self, image, options, parameters=""):
        """Boots with this initramfs, these devices and other options of QEMU's, and these parameters of the kernel."""
        (self.directory / "image").write_bytes(image)
        append = f"console=ttyAMA0 rdinit=/init panic=-1 loglevel=5 cryptomgr.notests {parameters}"
        command = [*self.command, "-initrd", self.directory / "image", "-append", append, *options]
        self.qemu = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines, self.console = queue.Queue(), []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def catch_up(self):
        """Forgets the lines that nobody expected: what is expected next is still to come."""
        while not self.lines.empty():
            self._calm(self.lines.get())

    def expect(self, pattern, patience=PATIENCE):
        """Waits for a line of the console in which `pattern` is found; returns the match. A line of alarm is a failure."""
        end = time.monotonic() + patience
        while True:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise Failure(f"boot {self.boots}: no line with {pattern!r} in {patience} s\n{self.hint()}") from None
            self._calm(line)
            match = re.search(pattern, line)
            if match:
                return match

    def _calm(self, line):
        if line is None:
            raise Failure(f"boot {self.boots}: the machine ended\n{self.hint()}")
        if ALARMS.search(line):
            raise Failure(f"boot {self.boots}: {line}\n{self.hint()}")

    def stop(self):
        """Ends what runs, at the end of all or after a failure."""
        if self.qemu is not None:
            end(self.qemu)

    def hint(self):
        """Where to look after a failure."""
        return f"the console is in {self.logs}/boot-{self.boots:02}.log"

    def _read(self):
        """Takes down the console, each line with the time since power-on."""
        began = time.monotonic()
        for raw in self.qemu.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.log.write(f"{time.monotonic() - began:8.3f} {line}\n")
            self.log.flush()
            self.console.append(line)
            self.lines.put(line)
        self.lines.put(None)


class Board(Machine):
    """The board. What it keeps while it has no power: its disk, and its TPM's state in `directory`/tpm."""

    def __init__(self, arch, cross, directory, disk, logs):
        super().__init__(arch, cross, directory, logs)
        self.disk = disk
        (directory / "tpm").mkdir()
        self.tpm = None

    def power_on(self, image):
        """Boots with this initramfs."""
        self.open_log()
        self.disk.power_on()
        tpm_socket = self.directory / "tpm.socket"
        tpm_socket.unlink(missing_ok=True)
        self._start_tpm(self.log, "--ctrl", f"type=unixio,path={tpm_socket}")
        machine = ["-m", "256", "-rtc", "base=1970-01-01"]
        network = ["-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net"]
        disk = ["-blockdev", f"driver=nbd,node-name=data,server.type=unix,server.path={self.directory}/disk.socket"]
        disk += ["-device", "virtio-blk-device,drive=data,write-cache=on"]
        tpm = ["-chardev", f"socket,id=tpm,path={tpm_socket}", "-tpmdev", "emulator,id=tpm,chardev=tpm"]
        tpm += ["-device", "tpm-tis-device,tpmdev=tpm"]
        self.boot(image, [*machine, *network, *disk, *tpm])

    def cut_power(self, random, survival):
        """Kills board and TPM; the disk loses its cache. Returns what the disk says of it."""
        end(self.qemu)
        end(self.tpm)
        self.reader.join()
        lost, cached = self.disk.power_off(random, survival)
        self.log.write(f"power cut: {lost} of {cached} cached pages lost\n")
        self.log.close()
        self.qemu = self.tpm = None
        return lost, cached

    def tpm_says(self):
        """What the TPM, without the board, says of itself: (times it lost power, failures that count towards a lockout)."""
        socket = self.directory / "look.socket"
        ways = ["--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"]
        with open(self.logs / "tpm.log", "w", encoding="utf-8") as log:
            self._start_tpm(log, *ways, "--flags", "not-need-init,startup-clear")
            tools = {"stdout": subprocess.PIPE, "stderr": log, "check": True, "text": True}
            clock = subprocess.run(["tpm2_readclock", "-T", f"swtpm:path={socket}"], **tools).stdout
            variable = subprocess.run(["tpm2_getcap", "-T", f"swtpm:path={socket}", "properties-variable"], **tools).stdout
        end(self.tpm)
        self.tpm = None
        return int(re.search(r"reset_count: (\d+)", clock)[1]), int(re.search(r"LOCKOUT_COUNTER: 0x(\w+)", variable)[1], 16)

    def _start_tpm(self, log, *options):
        """Starts the TPM and waits until it listens: a socket's name is there before that, swtpm's process id only then."""
        ready = self.directory / "tpm.pid"
        ready.unlink(missing_ok=True)
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.directory}/tpm", "--pid", f"file={ready}", *options]
        self.tpm = start(command, stdout=log, stderr=log)
        wait_until("the TPM", ready.exists)

    def stop(self):
        """Ends what runs, at the end of all or after a failure."""
        super().stop()
        if self.tpm is not None:
            end(self.tpm)


def start(command, **options):
    """Starts a process that dies with this one, however this one dies."""
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, **options)


def end(process):
    """Kills a process and takes its leave."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_until(what, holds):
    """Waits until it holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise Failure(f"{what} is not there after {PATIENCE} s\nsee the logs of this run")
        time.sleep(0.02)
