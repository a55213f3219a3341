"""Measurements of the machine and of this process: hardware, read bandwidth, multiply rate, memory, load by others."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.screen.compiled.numba_support import compiled, rotations_kernel
from app.screen.threads import usable_cores

READ_BYTES: Final = 512 << 20
"""Bytes read to measure bandwidth: far more than any cache holds."""

REPEATS: Final = 5
"""Number of repetitions, of which the best counts: other load makes the machine slower, nothing makes it faster."""

SAMPLE_S: Final = 0.002
"""Seconds between two samples of the process's memory."""

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """Description of a machine. cpu: its name. cores: usable by this process. ram_gib: total."""

    cpu: str
    cores: int
    ram_gib: float


def this_machine() -> Machine:
    """Describe the machine of this process. The processor's name is Linux's; elsewhere, the platform module's."""
    name = platform.processor() or platform.machine()
    flags = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            name = value.strip() if key.strip() == "model name" else name
            flags = value if key.strip() == "flags" else flags
    except OSError:
        pass
    vectors = next((v for v in ("avx512f", "avx2") if v in flags.split()), "")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return Machine(f"{name} {vectors}".strip(), usable_cores(), ram)


def read_bandwidth() -> float:
    """Return the bytes a second this machine reads from memory, all usable cores together; best of REPEATS."""
    data = np.ones(READ_BYTES // 8, np.int64)
    cores = usable_cores()
    parts = np.array_split(data, cores)
    add = _adder()
    with ThreadPoolExecutor(cores) as pool:

        def once() -> float:
            begun = time.perf_counter()
            list(pool.map(add, parts))
            return time.perf_counter() - begun

        once()
        return data.nbytes / min(once() for _ in range(REPEATS))


def bytes_from_disk() -> int:
    """Return the bytes read from disk for this process so far (/proc/self/io); 0 if unknown."""
    try:
        for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _adder() -> Callable[[NDArray[np.int64]], Any]:
    """Return a function that sums an array as fast as it can be read: compiled, or numpy's if numba is missing."""
    if rotations_kernel() is None:
        return np.add.reduce

    def add(x: Any) -> int:
        total = 0
        for i in range(len(x)):
            total += x[i]
        return total

    return compiled(add)


@dataclass(slots=True)
class Peak:
    """Largest anonymous memory held, in MiB above the amount held before; 0 until the measurement ends."""

    extra_mib: float = 0.0


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Sample the process's anonymous memory (RssAnon) while inside; droppable mapped files are left out."""
    peak, done = Peak(), threading.Event()
    before = _anonymous_mib()
    seen = [before]

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            seen.append(_anonymous_mib())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.extra_mib = max(*seen, _anonymous_mib()) - before


def _anonymous_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / MIB
    except OSError:
        pass
    return 0.0


@dataclass(slots=True)
class Others:
    """Load by other processes. share: of all cores' time (0..1); 0 until the measurement ends or if unknown."""

    share: float = 0.0


@contextmanager
def watch_others() -> Iterator[Others]:
    """Measure the processor time of other processes (and a hypervisor's other guests) while inside."""
    others = Others()
    begun, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
    yield others
    elapsed = time.perf_counter() - begun
    taken = _busy_seconds() - busy - (time.process_time() - own)
    others.share = min(max(taken / (elapsed * (os.cpu_count() or 1)), 0.0), 1.0)


def _busy_seconds() -> float:
    """Return the seconds all cores together have not been idle, stolen ones included; 0 if unknown."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # without idle and iowait


def drop_from_cache(directory: Path) -> None:
    """Ask the kernel to drop these files' pages (posix_fadvise DONTNEED), written back first; none may be mapped."""
    for file in directory.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
