"""Products of float64 matrices, bit-identical on any machine.

A BLAS is free to choose the order of its sums, and the last bits of a sum depend on it unless no sum is rounded. Here every
factor is cut into slices of whole numbers so small that each product of two slices is a whole number below 2⁵³, exact in
any order, fused or not (the error-free splitting of Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59 (2012) 95). The
few products of slices are then added in a fixed order.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

SIGNIFICAND: Final = 53
"""Bits of a float64's significand: whole numbers up to 2⁵³ are exact."""


def by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x·2⁻ᵉ row by row, e): the largest magnitude of each row of x (n, d) in [½, 1), or the row is zero; e (n,).

    x is changed in place.
    """
    rows = x.numpy()
    exponents = torch.from_numpy(np.frexp(np.maximum(rows.max(1), -rows.min(1)))[1])
    return shifted(x, -exponents), exponents


def shifted(x: Tensor, exponents: Tensor) -> Tensor:
    """Multiply row i of x (n, d) by 2^exponents[i] in place, |exponents| ≤ 1000; exact unless the result is subnormal."""
    powers = np.ldexp(np.ones(len(exponents)), exponents.numpy())  # pow() may be an ulp off
    return x.mul_(torch.from_numpy(powers)[:, None])


def gram(x: Tensor, slices: int) -> Tensor:
    """Return x·xᵀ of rows of magnitude at most 1, x (n, d), to about 2^−(slices·19): symmetric, float64."""
    cut = _cut(x, x.shape[1], slices)
    total = x.new_zeros(x.shape[0], x.shape[0])
    for level in reversed(range(min(slices, 2 * len(cut) - 1))):  # small ones first
        for i in range(level // 2 + 1):
            j = level - i
            if j < len(cut):
                product = cut[i] @ cut[j].T
                total += product if i == j else product + product.T
    return total


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return x·y, x (n, r) by rows and y (r, d) everywhere of magnitude at most 1, to about 2^−44 overall; float64."""
    terms = 2 * x.shape[1]
    left, right = (_cut(one, terms, 2) for one in (x, y))
    small = torch.cat([left[1], left[0]], 1) @ right.view(terms, -1)
    return small.add_(left[0] @ right[0])


def _cut(x: Tensor, terms: int, slices: int) -> Tensor:
    """Cut x (n, d) into slices (slices, n, d) that sum to about x: the first in whole multiples of 2^−bits, the second of
    2^−2·bits and so on, so that `terms` products may be summed exactly; only the first two if they already make up x."""
    bits = (SIGNIFICAND - (terms - 1).bit_length()) // 2
    found = x.new_empty(slices, *x.shape)
    for i, part in enumerate(found):
        if i > 0:
            x = (
                x - found[0] if i == 1 else x.sub_(found[i - 1])
            )  # exact: the remainder of rounding to the nearest multiple
        if i > 1 and not float(torch.dot(x.view(-1), x.view(-1))) > 0.0:
            return found[:i]
        coarse = 1.5 * 2.0 ** (SIGNIFICAND - 1 - bits * (i + 1))  # so large that a sum with it has no finer digits
        torch.add(x, coarse, out=part).sub_(coarse)  # to nearest, ties to even
    return found
