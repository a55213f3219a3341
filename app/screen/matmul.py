"""Products with V, block by block: V is 16-bit and large, the other factor has only a few columns.

A block of rows is widened into one small buffer that stays in the processor's cache, multiplied there, and discarded.
Memory beyond V is the buffer and the results. Blocks have a fixed size, so results do not depend on the machine's memory.
"""

from typing import Final

import torch
from torch import Tensor

BLOCK_BYTES: Final = 2 << 20
"""Bytes of the widened block: it stays in the cache while it is multiplied. Fastest measured of 256 kB to 4 MB."""

LANES: Final = 16
"""Columns are padded to a multiple of this: single-precision products with 8 columns took twice as long as with 16."""

FOLD: Final = 8
"""Number of blocks summed in the working precision before the sum is added to the float64 total."""

GRAM_ROWS: Final = 1024
"""Rows of V in one product of `gram`: 16 MiB at 4096 columns."""

GRAM_EXACT: Final = 1024
"""Largest number of columns for which the Gram matrix is computed entirely in float64."""


def block_rows(v: Tensor, dtype: torch.dtype) -> int:
    """Return the number of rows of `v` in one block."""
    return max(8, BLOCK_BYTES // (v.shape[1] * dtype.itemsize))


def right(v: Tensor, x: Tensor) -> Tensor:
    """Return V·X: (d_out, d_in)·(d_in, n) → (d_out, n), computed in x's dtype on x's device."""
    columns = x.shape[1]
    x = torch.nn.functional.pad(x, (0, -columns % LANES))
    rows = min(block_rows(v, x.dtype), v.shape[0])
    buffer = torch.empty(rows, v.shape[1], dtype=x.dtype, device=x.device)
    out = torch.empty(v.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    for at in range(0, v.shape[0], rows):
        part = v[at : at + rows]
        wide = buffer[: part.shape[0]].copy_(part)
        torch.mm(wide, x, out=out[at : at + rows])
    return out[:, :columns]


def left(v: Tensor, y: Tensor) -> Tensor:
    """Return Vᵀ·Y: (d_in, d_out)·(d_out, n) → (d_in, n) in float64; blocks are multiplied in y's dtype on y's device."""
    rows = min(block_rows(v, y.dtype), v.shape[0])
    buffer = torch.empty(rows, v.shape[1], dtype=y.dtype, device=y.device)
    folded = torch.zeros(
        y.shape[1], v.shape[1], dtype=torch.float64, device=y.device
    )  # transposed: long rows, like V's
    partial = torch.zeros(y.shape[1], v.shape[1], dtype=y.dtype, device=y.device)
    for i, at in enumerate(range(0, v.shape[0], rows)):
        part = v[at : at + rows]
        wide = buffer[: part.shape[0]].copy_(part)
        partial.addmm_(y[at : at + rows].T, wide)  # (n, rows)·(rows, d_in)
        if i % FOLD == FOLD - 1:
            folded += partial
            partial.zero_()
    folded += partial
    return folded.T


def gram(v: Tensor) -> Tensor:
    """Return the smaller of V·Vᵀ and Vᵀ·V, in float64 (products of float32 blocks, summed in float64)."""
    side = v.T if v.shape[0] < v.shape[1] else v  # (long, short)
    short = side.shape[1]
    total = torch.zeros(short, short, dtype=torch.float64)
    exact = short <= GRAM_EXACT
    for at in range(0, side.shape[0], GRAM_ROWS):
        wide = side[at : at + GRAM_ROWS].to(torch.float64 if exact else torch.float32)
        total += wide.T @ wide
    return total
