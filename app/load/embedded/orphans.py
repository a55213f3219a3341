"""Cleanup of engine processes that an earlier gateway left running; it never kills an unrelated process.

The engine runs in a session of its own. The process id of the session's leader does not identify it, because ids are
reused: the record also holds the leader's start time and the machine's boot id. Linux gives no new process the id of a
session that still has members, so if the leader has ended and members remain, they are the engine's.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

KILL_S: Final = 10.0
"""Seconds to wait for killed processes to end; a worker frees gigabytes."""

TICK_S: Final = 0.05
"""Seconds between checks."""

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

FAMILIES: Final = ("child_wrapper.py", "vllm", "multiprocessing")
"""Parts of the command lines by which the engine's processes are recognised, in lower case."""


def python(*arguments: str) -> list[str]:
    """Return the command that runs this interpreter with `arguments`."""
    return [sys.executable, *arguments]


def record(path: Path, leader: int) -> None:
    """Write the record of the session that `leader` leads. Blocking, a few hundred bytes."""
    entry = {"session": leader, "started": _started(leader), "boot": _boot()}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(entry), encoding="utf-8")
    fresh.replace(path)


def reap(path: Path) -> int:
    """Kill the remaining processes of the recorded session and delete the record; return how many were killed. Blocking."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        leader, started, boot = int(entry["session"]), entry["started"], entry["boot"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    count = 0
    if boot == _boot() and _started(leader) in (started, None):  # None: the leader has ended, its family may not have
        count = _kill(leader)
    path.unlink(missing_ok=True)
    return count


def members(leader: int) -> list[int]:
    """Return the running processes of this user, in the session that `leader` leads, that look like an engine's."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, _, _, sid = _stat(int(entry.name))[:4]
            if state == "Z" or int(sid) != leader or entry.stat().st_uid != os.getuid():
                continue
            line = (entry / "cmdline").read_bytes().lower().decode(errors="replace")
            if any(word in line for word in FAMILIES):
                found.append(int(entry.name))
    return found


def _kill(leader: int) -> int:
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_S
    while (left := members(leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        time.sleep(TICK_S)
    return len(killed)


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot; None if there is no such process."""
    try:
        return _stat(pid)[19]
    except (OSError, IndexError):
        return None


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third (state) on; the second may contain spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _boot() -> str:
    return BOOT_ID.read_text(encoding="utf-8").strip()
