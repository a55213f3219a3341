"""Compilation of the kernel ahead of the first screening."""

import time

import numpy as np

from app.screen.core_svd import core_svd


def warm() -> float:
    """Compile the kernel, or load it from numba's cache; return the seconds it took. Blocking: call in a thread.

    Takes a second from the cache, several otherwise; without numba, next to nothing.
    """
    begun = time.perf_counter()
    core_svd(np.ones((2, 2)))
    return time.perf_counter() - begun
