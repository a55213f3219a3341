"""Products of float64 matrices that are the same to the bit on any machine.

The order in which a BLAS sums is its own affair, and with it the last bits of a sum, except where no sum is rounded: here
every factor is cut into slices of whole numbers so small that each product of two slices is a whole number below 2⁵³,
exact in any order, fused or not (the error-free splitting of Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59 (2012)
95). The few products of slices are then added in a written order.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

SIGNIFICAND: Final = 53
"""Bits of a float64's significand: whole numbers up to 2⁵³ are exact."""


def by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x·2⁻ᵉ row by row, e): the largest magnitude of each row of x (n, d) lies in [½, 1), or the row is zero; e (n,)."""
    exponents = torch.frexp(x.abs().amax(1))[1]
    return shifted(x, -exponents), exponents


def shifted(x: Tensor, exponents: Tensor) -> Tensor:
    """x (n, d) with row i times 2^exponents[i], |exponents| ≤ 1000; exact but where the result is subnormal."""
    powers = np.ldexp(np.ones(len(exponents)), exponents.numpy())  # pow() may be an ulp off
    return x * torch.from_numpy(powers)[:, None]


def gram(x: Tensor, slices: int) -> Tensor:
    """x·xᵀ of rows of magnitude at most 1, x (n, d), to 2^−(slices·19) or so: symmetric, float64."""
    cut, bits = _cut(x, x.shape[1], slices)
    total = x.new_zeros(x.shape[0], x.shape[0])
    for level in reversed(range(min(slices, 2 * len(cut) - 1))):  # small ones first
        for i in range(level // 2 + 1):
            j = level - i
            if j < len(cut):
                product = cut[i] @ cut[j].T
                total += (product if i == j else product + product.T) * 2.0 ** (-bits * (level + 2))
    return total


def product(x: Tensor, y: Tensor, slices: int) -> Tensor:
    """x·y, x (n, r) by rows and y (r, d) everywhere of magnitude at most 1, to about 2^−(slices·22) in all; float64."""
    left, bits = _cut(x, x.shape[1], slices)
    right, _ = _cut(y, x.shape[1], slices)
    total = x.new_zeros(x.shape[0], y.shape[1])
    for level in reversed(range(min(slices, len(left) + len(right) - 1))):
        for i in range(level + 1):
            if i < len(left) and level - i < len(right):
                total += (left[i] @ right[level - i]) * 2.0 ** (-bits * (level + 2))
    return total


def _cut(x: Tensor, terms: int, slices: int) -> tuple[list[Tensor], int]:
    """x ≈ Σᵢ slice_i·2^−bits·(i+1), whole numbers whose products may be summed `terms` times; at least one slice."""
    bits = (SIGNIFICAND - (terms - 1).bit_length()) // 2
    found: list[Tensor] = []
    for _ in range(slices):
        x = x * 2.0**bits
        whole = x.round()  # to nearest, ties to even
        found.append(whole)
        x = x - whole  # exact: what the nearest whole number leaves
        if not bool(x.any()):
            break
    return found, bits
