"""What memory the agent takes on the board: at the peak of a join, and idle."""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from machine import Failure

BUDGETS = Path(__file__).resolve().parents[2] / "tests/bench/budgets.toml"

# The agent's memory at the end of a join; the agent is the parent of this. The kernel keeps the peak by counters of which each thread
# holds back a part; what is there now, it counts.
RELOAD = 'echo "board: join" $(grep -h -E "^(VmHWM|Rss):" "/proc/$PPID/status" "/proc/$PPID/smaps_rollup") >/dev/console\n'
# Bytes that the kernel maps around a page of a file when that page is first used, if it has them in memory: its default, and none.
AROUND, PAGE_BY_PAGE = 65536, 4096

ONE = """
echo "board: measuring {name}"
echo {around} >/sys/kernel/debug/fault_around_bytes
{program} start --oneshot -c "/board/{name}.yaml"
{program} start -c "/board/{name}.yaml" 2>&1 | tee /tmp/log &
until grep -q 'reloaded by' /tmp/log; do sleep 1; done
for process in $(pidof {program}); do
    awk '$1 ~ /-/ {{ name = $6 ? $6 : "[other]"; sub(".*/", "", name) }} /^Rss:/ {{ all[name] += $2 }} /^Anonymous:/ {{ own[name] += $2 }}
        END {{ printf "board: idle"; for (name in all) printf " %s=%d+%d", name, all[name] - own[name], own[name]; print "" }}' \\
        "/proc/$process/smaps"
    kill "$process"
done
wait
rm /tmp/log
"""


class Case(NamedTuple):
    """What is measured: a program of the board, its key store, and what the kernel maps around a page that is used."""

    program: str
    keystore: str
    around: int

    @property
    def name(self):
        """Of its configuration and token."""
        return f"{self.program}-{self.keystore}-{self.around}"


class Memory(NamedTuple):
    """In kB."""

    peak: int
    # Of each mapping when it is idle: {name: (pages of files, its own)}.
    parts: dict

    @property
    def own(self):
        """What no file holds, when it is idle."""
        return sum(own for _, own in self.parts.values())

    @property
    def idle(self):
        """All that is resident."""
        return sum(files + own for files, own in self.parts.values())

    def __str__(self):
        return f"{self.peak} kB at the peak of a join, {self.idle} kB idle, of which {self.own} kB are its own"


def judge(arch, keystore, found):
    """Fails where a budget is broken."""
    budget = tomllib.loads(BUDGETS.read_text(encoding="utf-8"))["board"].get(arch, {}).get(keystore, {})
    for name, limit in budget.items():
        if getattr(found, name) > limit:
            raise Failure(f"memory with keys in {keystore}: {getattr(found, name)} kB {name}, and the budget is {limit}\nsee {BUDGETS}")


def script(cases):
    """What the board does: each joins for the first time, then is a daemon that has renewed."""
    return "mount -t debugfs debugfs /sys/kernel/debug\n" + "".join(
        ONE.format(name=case.name, program=case.program, around=case.around) for case in cases
    )


def read(board, case):
    """What the board says of a case."""
    board.expect(f"measuring {case.name}$")
    peak, counted = board.expect(r"join VmHWM: (\d+) kB Rss: (\d+) kB").groups()
    said = board.expect("board: idle(.*)")[1]
    parts = {name: (int(files), int(own)) for name, files, own in re.findall(r"(\S+)=(\d+)\+(\d+)", said)}
    return Memory(max(int(peak), int(counted)), parts)
