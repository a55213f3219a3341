"""Singular value decomposition of small matrices, bit-identical on any machine.

LAPACK chooses its algorithm and the order of its sums by machine, and for equal singular values any basis is correct.
Here every operation is a float64 addition, multiplication, division or square root, rounded as IEEE 754 requires and made
in one fixed order, so ties are broken in the same way everywhere. If numba is installed, it compiles the rotations (it
neither reorders nor fuses: no fastmath); otherwise numpy makes the same operations on many pairs at once.
"""

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.screen.compiled.numba_support import rotations_kernel

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]

DEPENDENT: Final = 2.0**-44
"""Largest share of a row's square that may remain, once earlier rows are projected out, for the row to count as a linear
combination of them: float64's rounding over 512 rows."""

ORTHOGONAL: Final = 2.0**-46
"""Cosine below which two columns count as orthogonal. The remainder of the longest column in the vector of a singular
value s is this over s/s₁; float64 reaches about 2⁻⁵⁰."""

DEAD: Final = 2.0**-30
"""Columns below this share of the longest are far below any serving dtype's resolution and are not rotated."""

SWEEPS: Final = 60
"""Largest number of sweeps over all pairs. One-sided Jacobi converges quadratically; six to ten are usual."""


def multiply(x: Array, y: Array) -> Array:
    """Return x (n, k) · y (k, m), with terms added in the order of k."""
    total = np.zeros((x.shape[0], y.shape[1]))
    for k in range(x.shape[1]):
        total += x[:, k, None] * y[None, k, :]
    return total


def summed(x: Array) -> Array:
    """Return the sums of the rows of x (n, m), added in the order of m: (n,)."""
    total = np.zeros(x.shape[0])
    for column in x.T:
        total += column
    return total


def cholesky(g: Array) -> Array:
    """Return L (n, ρ) with g ≈ L·Lᵀ, g (n, n) a Gram matrix; pivoted, without linearly dependent rows (DEPENDENT)."""
    left, scale = g.copy(), np.diagonal(g).copy()
    columns = []
    for _ in range(len(g)):
        share = np.diagonal(left) / np.where(scale > 0.0, scale, 1.0)
        pivot = int(np.argmax(share))  # the first of equals
        if not share[pivot] > DEPENDENT:
            break
        column = left[:, pivot] / np.sqrt(left[pivot, pivot])
        columns.append(column)
        left -= column[:, None] * column[None, :]
        left[pivot, :] = left[:, pivot] = 0.0
    return np.stack(columns, 1) if columns else np.zeros((len(g), 0))


def core_svd(core: Array) -> tuple[Array, Array, Array] | None:
    """Return (u (p, n), s (n,) descending, v (q, n)) of core (p, q); singular values up to 2·DEAD of the largest left out.

    One-sided Jacobi after Hestenes, pairs in a fixed round-robin, longest columns first. None if it does not converge.
    """
    if core.shape[1] > core.shape[0]:
        turned = core_svd(np.ascontiguousarray(core.T))
        return None if turned is None else (turned[2], turned[1], turned[0])
    rows = np.ascontiguousarray(core.T)  # (q, p): a column of the core is a row here
    rows = rows[np.argsort(-summed(rows * rows), kind="stable")]
    fast = rotations_kernel()
    turn = fast.sweep if fast is not None else _sweep
    schedule = round_robin(len(rows))
    for _ in range(SWEEPS):
        largest = float(summed(rows * rows).max(initial=0.0))
        if not turn(rows, schedule, DEAD * DEAD * largest, ORTHOGONAL):
            break
    else:
        return None
    s = np.sqrt(summed(rows * rows))
    order = np.argsort(-s, kind="stable")
    order = order[s[order] > 2.0 * DEAD * s.max(initial=0.0)]
    u = (rows[order] / s[order, None]).T
    v = multiply(np.ascontiguousarray(core.T), u) / s[order]
    return u, s[order], v


@functools.cache
def round_robin(n: int) -> Pairs:
    """Return every pair of 0 … n−1 once, in rounds of disjoint pairs: (rounds, pairs of a round, 2); −1 for no partner."""
    even = n + n % 2
    ring = [*range(n), *([-1] * (even - n))]
    rounds = []
    for _ in range(max(even - 1, 0)):
        pairs = [(ring[i], ring[even - 1 - i]) for i in range(even // 2)]
        rounds.append([(-1, -1) if -1 in pair else (min(pair), max(pair)) for pair in pairs])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    schedule = np.array(rounds, np.int64).reshape(len(rounds), even // 2, 2)
    schedule.flags.writeable = False
    return schedule


def _sweep(rows: Array, schedule: Pairs, dead: float, orthogonal: float) -> bool:
    """Do the work of rotations.sweep, one round of pairs at a time: the same operations on the same numbers."""
    turned = False
    for pairs in schedule:
        i, j = pairs[pairs[:, 0] >= 0].T
        x, y = rows[i], rows[j]
        a, b, g = summed(x * x), summed(y * y), summed(x * y)
        turns = (a > dead) & (b > dead) & (np.abs(g) > orthogonal * np.sqrt(a) * np.sqrt(b))
        if not turns.any():
            continue
        turned = True
        i, j, x, y, a, b, g = (part[turns] for part in (i, j, x, y, a, b, g))
        zeta = (b - a) / (2.0 * g)
        t = np.where(zeta >= 0.0, 1.0, -1.0) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
        c = 1.0 / np.sqrt(1.0 + t * t)
        s = c * t
        rows[i], rows[j] = c[:, None] * x - s[:, None] * y, s[:, None] * x + c[:, None] * y
    return turned
