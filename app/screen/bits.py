"""Magnitudes of floating-point numbers as integers, for fast comparisons of all values of a tensor."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def magnitudes(x: Tensor) -> NDArray[np.integer[Any]]:
    """Return |x| as integers in the same order: the bits without the sign."""
    width = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32), 8: (torch.int64, np.uint64)}[x.dtype.itemsize]
    found: NDArray[np.integer[Any]] = x.contiguous().view(width[0]).numpy().view(width[1]) << 1
    return found


@functools.cache
def magnitude(x: float, dtype: torch.dtype) -> int:
    """Return the magnitude of one number."""
    return int(magnitudes(torch.tensor([x], dtype=dtype))[0])


def has_subnormal(x: Tensor) -> bool:
    """Return whether a value of x is subnormal: an engine reads it as zero."""
    return bool((magnitudes(x) - 1 < magnitude(torch.finfo(x.dtype).tiny, x.dtype) - 1).any())  # 0 − 1 is the largest
