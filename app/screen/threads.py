"""Parallelism over modules, never inside a product.

Each module is measured by one thread with single-threaded kernels: its numbers do not depend on the number of threads. It
also keeps the thousands of small products of one screening from OpenMP's spinning barriers, which on a machine busy with
an engine cost more than the products themselves (measured: ten times).
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

from app.domain.lora import LoraModule

WORTH_A_THREAD: Final = 1 << 18
"""Values of the average module's factors, r·(d_in + d_out), from which several threads are faster than one. Below it
they spend their time waiting for the interpreter's lock between small operations: `bench uploads` took longer with two
threads than with one at 16·(4096 + 4096) values, and less time at four times as many."""

T = TypeVar("T")
R = TypeVar("R")

_lock: Final = threading.Lock()
_callers_inside = 0
_threads_before = 1


@contextmanager
def single_threaded_kernels() -> Iterator[None]:
    """Limit torch's kernels to one thread each while any caller is inside; the last one out restores the setting."""
    global _callers_inside, _threads_before  # noqa: PLW0603 (torch's own setting is global)
    with _lock:
        if _callers_inside == 0:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(1)
        _callers_inside += 1
    try:
        yield
    finally:
        with _lock:
            _callers_inside -= 1
            if _callers_inside == 0:
                torch.set_num_threads(_threads_before)


def usable_cores() -> int:
    """Return the number of cores on which this process may run."""
    return len(os.sched_getaffinity(0))


def threads_for(modules: Sequence[LoraModule]) -> int:
    """Return the number of threads for operations on the factors of these modules."""
    values = sum(module.a.numel() + module.b.numel() for module in modules)
    return usable_cores() if values >= WORTH_A_THREAD * len(modules) else 1


def each(measure: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Apply `measure` to every item, with at most `workers` threads; results in order. Raises the first exception."""
    with single_threaded_kernels():
        if workers <= 1:
            return [measure(item) for item in items]
        with ThreadPoolExecutor(workers, thread_name_prefix="screen") as pool:
            return list(pool.map(measure, items))
