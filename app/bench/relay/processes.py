"""Resource use of a process and its children, from /proc: processor time and memory."""

import os
from pathlib import Path
from typing import Final

_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return a process and its descendants that are alive now."""
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, its children, and their children that ended (s, in ticks of 10 ms)."""
    return sum(_own_cpu_seconds(member) for member in family(pid))


def resident_mib(pid: int, *, children: bool = True) -> float:
    """Return the resident memory of a process and, by default, its children; shared pages are counted once for each."""
    total = 0
    for member in family(pid) if children else [pid]:
        try:
            lines = Path(f"/proc/{member}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total / 1024


def _own_cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11:15]) * _TICK_S
