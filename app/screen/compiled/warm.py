"""Compilation of the kernels ahead of the first screening."""

import time

import numpy as np

from app.screen.core_svd import core_svd
from app.screen.quadratic_form import Array, quantiles


def warm() -> float:
    """Compile the kernels, or load them from numba's cache; return the seconds it took. Blocking: call in a thread.

    Takes a second from the cache, several otherwise; without numba, next to nothing.
    """
    begun = time.perf_counter()
    core_svd(np.ones((2, 2)))

    def weights(t: Array) -> tuple[Array, Array]:
        return np.stack([1.0 - t, -t], 1), -np.ones((len(t), 2))

    quantiles(weights, np.array([2.0, 2.0]), np.array([0.5]), 0.5, (0.0, 1.0))
    return time.perf_counter() - begun
