"""Exact quartiles of ratios of Gaussian quadratic forms.

Every null of E-DIEM is a ratio T = N/D of quadratic forms in independent standard normals, and P(T ≤ t) =
P(Σ_j w_j(t)·χ²_{ν_j} ≤ 0): a signed sum of independent chi-squares against zero. Its distribution function is Imhof's
integral (J. P. Imhof, Biometrika 48 (1961) 419, eq. 3.2),

    P(Q ≤ 0) = ½ − (1/π)·∫₀^∞ sin θ(u) / (u·ρ(u)) du,
    θ(u) = ½·Σ ν_j·atan(w_j·u),   ρ(u) = Π (1 + w_j²·u²)^{ν_j/4}.

In complex form the integral is Im ∫ φ(u)/u du with φ(u) = Π (1 − i·w_j·u)^{−ν_j/2}. It is taken along a ray u = eˣ⁻ⁱᵃ,
turned away from the real axis to the side of the heavier tail: there the many small weights of the other side, which only
make φ turn on the real axis, make it fall. In x the integrand is analytic in a strip and falls off at both ends, so the
trapezoid rule converges exponentially (L. N. Trefethen, J. A. C. Weideman, SIAM Rev. 56 (2014) 385, theorem 5.1). About
eighty nodes give eight digits from 2 to 10⁶ degrees of freedom. The result is a number, not a sample: float64, no seed, the
same on any number of threads.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Callable[[Array], tuple[Array, Array]]
"""t (n,) → w(t) (n, m) and its derivative dw/dt (n, m)."""

STEP: Final = 0.125
"""Of the trapezoid rule in x = ln u. Measured over forms of 8 to 14336·16 degrees of freedom: 0.2 gives 7e-6 of the IQR,
0.15 2e-7, 0.1 below 4e-9."""

ANGLE: Final = math.pi / 8
"""Of the ray: between 0, where one-sided forms turn without falling, and π/4, where normal ones no longer fall."""

DECAY: Final = 25.0
"""−ln of |φ| where the upper end is cut: e⁻²⁵ ≈ 1e-11."""

SMALL: Final = 2e-3
"""Below this u, in 1/(|mean| + deviation), φ is its Taylor polynomial of degree two to about 1e-9."""

LAST: Final = math.log(1e9)
"""Largest x: forms with two or three degrees of freedom fall slowly and are cut there, at an error of 1e-9."""

CANTELLI: Final = 2.0
"""Means farther from 0 than this many deviations leave at most 1/(1 + 2²) = 1/5 beyond 0 (Cantelli): outside quartiles."""

MAX_STEPS: Final = 60
"""Newton steps, safeguarded by bisection: 2⁻⁶⁰ of the bracket even if every step is a bisection."""

CLOSE: Final = 1e-4
"""Newton ends after a step below this share of the form's spread: it converges quadratically, so about 1e-8 is left."""


def probability(w: Array, dof: Array, dw: Array) -> tuple[Array, Array]:
    """P(Σ_j w_j·χ²_{ν_j} ≤ 0) and its derivative along dw, row by row.

    w, dw: (n, m) weights and their derivatives; dof: (n, m) degrees of freedom, which need not be whole. A weight of 0
    counts for nothing. Returns two (n,) arrays. Where the mean is more than CANTELLI deviations from 0, the answer is a
    plain 0 or 1 with no slope: enough to tell on which side of the quartiles it lies.
    """
    mean, variance = np.sum(w * dof, axis=1), 2.0 * np.sum(w * w * dof, axis=1)
    far = np.abs(mean) > CANTELLI * np.sqrt(variance)
    scale = np.where(far, 1.0, np.abs(mean) + np.sqrt(variance))[:, None]
    w, dw = w / scale, dw / scale  # now u is counted in 1/(|mean| + deviation)
    angle = np.where(np.sum(w**3 * dof, axis=1) > 0.0, -ANGLE, ANGLE)  # away from the heavy tail's oscillation
    turn = np.exp(1j * angle)
    x = _grid(w, dof, turn)  # (n, nodes), descending
    iu = (1j * turn)[:, None, None] * np.exp(x)[:, None, :]  # (n, 1, nodes)
    factor = 1.0 - w[:, :, None] * iu  # (n, m, nodes)
    half = 0.5 * dof[:, :, None]
    cf = np.exp(-np.sum(half * np.log(factor), axis=1)) * (STEP / math.pi)  # (n, nodes)
    slope = np.sum(half * dw[:, :, None] * iu / factor, axis=1)
    below = 0.5 - np.sum(cf.imag, axis=1) + angle * (-1.0 / math.pi)
    density = -np.sum((cf * slope).imag, axis=1)
    # the nodes below the last, where cf = 1 + i·κ₁·u/2 − (κ₁² + κ₂)·u²/8: two geometric series
    last = np.exp(x[:, -1])
    one, two = last / math.expm1(STEP) * (STEP / math.pi), last**2 / math.expm1(2 * STEP) * (STEP / math.pi)
    k1, k2 = np.sum(w * dof, axis=1), 2.0 * np.sum(w * w * dof, axis=1)
    d1, d2 = np.sum(dw * dof, axis=1), 4.0 * np.sum(w * dw * dof, axis=1)
    below -= 0.5 * k1 * turn.real * one - 0.125 * (k1 * k1 + k2) * (turn**2).imag * two
    density -= 0.5 * d1 * turn.real * one - 0.125 * (2.0 * k1 * d1 + d2) * (turn**2).imag * two
    return np.where(far, mean < 0.0, np.clip(below, 0.0, 1.0)), np.where(far, 0.0, density)


def _grid(w: Array, dof: Array, turn: NDArray[np.complex128]) -> Array:
    """Nodes x (n, nodes), from where the integrand has vanished down to where it is a polynomial."""
    low, high = np.zeros(len(w)), np.full(len(w), LAST)
    for _ in range(8):  # bisection to LAST/2⁸ < STEP: the range need not be exact
        middle = 0.5 * (low + high)
        factor = np.abs(1.0 - w * (1j * turn * np.exp(middle))[:, None])
        enough = 0.5 * np.sum(dof * np.log(factor), axis=1) >= DECAY
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    nodes = math.ceil((float(high.max()) - math.log(SMALL)) / STEP)
    return high[:, None] - STEP * np.arange(nodes)[None, :]


def quantiles(
    weights: Weights, dof: Array, p: Array, start: Array, bounds: tuple[Array, Array], spread: Array
) -> Array:
    """The t with P(Σ_j w_j(t)·χ²_{ν_j} ≤ 0) = p, row by row, for p between 0.2 and 0.8.

    weights: see `Weights`; the probability must grow with t. dof: (n, m). p, start, spread: (n,); bounds: two (n,), around
    start. spread: about the width of t's distribution. Newton's method, bisecting where it would leave the bracket.
    """
    t, (low, high) = start.copy(), bounds
    moving = np.ones(len(t), dtype=bool)
    for _ in range(MAX_STEPS):
        value, density = probability(*_rows(weights(t), dof))
        low, high = np.where(value < p, t, low), np.where(value < p, high, t)
        newton = t - (value - p) / np.where(density > 0.0, density, math.inf)
        close = (density > 0.0) & (np.abs(newton - t) <= CLOSE * spread)
        inside = (newton > low) & (newton < high) & (density > 0.0)
        new = np.where(close | inside, newton, 0.5 * (low + high))
        t = np.where(moving, new, t)
        moving &= ~close
        if not moving.any():
            break
    return t


def _rows(pair: tuple[Array, Array], dof: Array) -> tuple[Array, Array, Array]:
    w, dw = pair
    return w, np.broadcast_to(dof, w.shape), dw
