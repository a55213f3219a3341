"""Parallel over modules, never inside a product.

A module is measured by one thread with single-threaded kernels: its numbers are the same however many run beside it. And
the thousands of small products of one screening never meet at OpenMP's spinning barriers, which on a machine busy with an
engine cost more than the products themselves (measured: ten times).
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_lock: Final = threading.Lock()
_inside = 0
_before = 1


@contextmanager
def single_threaded_kernels() -> Iterator[None]:
    """Torch's kernels use one thread each while any caller is inside; the last one out restores the setting."""
    global _inside, _before  # noqa: PLW0603 (torch's own setting is global)
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def each(measure: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """`measure` of every item, in order, by at most `workers` threads. The first exception is raised."""
    with single_threaded_kernels():
        if workers <= 1:
            return [measure(item) for item in items]
        with ThreadPoolExecutor(workers, thread_name_prefix="screen") as pool:
            return list(pool.map(measure, items))
