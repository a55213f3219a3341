"""Exact quartiles of ratios of Gaussian quadratic forms.

Every null of E-DIEM is a ratio T = N/D of quadratic forms in independent standard normals, and P(T ≤ t) =
P(Σ_j w_j(t)·χ²_{ν_j} ≤ 0): a signed sum of independent chi-squares against zero. Its distribution function is Imhof's
integral (J. P. Imhof, Biometrika 48 (1961) 419, eq. 3.2),

    P(Q ≤ 0) = ½ − (1/π)·∫₀^∞ sin θ(u) / (u·ρ(u)) du,
    θ(u) = ½·Σ ν_j·atan(w_j·u),   ρ(u) = Π (1 + w_j²·u²)^{ν_j/4}.

In complex form the integral is Im ∫ φ(u)/u du with φ(u) = Π (1 − i·w_j·u)^{−ν_j/2}. It is taken along a ray u = eˣ⁻ⁱᵃ,
rotated from the real axis to the side of the heavier tail: there the many small weights of the other side, which on the
real axis only rotate φ, make it decay. If the mean is far from 0, most weights may be on the heavy side, and φ grows along
that ray without bound: then the other side is used, or a smaller angle. In x the integrand is analytic in a strip and
decays at both ends, so the trapezoid rule converges exponentially (L. N. Trefethen, J. A. C. Weideman, SIAM Rev. 56 (2014)
385, theorem 5.1). About eighty nodes give eight digits from 2 to 10⁶ degrees of freedom for the nulls of updates. Forms of
one or two heavy degrees of freedom beside hundreds of light ones have a narrower strip, and at STEP an error of up to 2e-3.
The sums over every second and every fourth node predict that error at no cost; if it is too large, the step is halved until
two sums agree. The result is deterministic, not sampled: float64, no seed, the same on any number of threads.
"""

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Callable[[Array], tuple[Array, Array]]
"""t (n,) → w(t) (n, m) and its derivative dw/dt (n, m)."""

Moments = tuple[Array, Array, Array, Array]

STEP: Final = 0.125
"""Step of the trapezoid rule in x = ln u. Measured over forms of 8 to 14336·16 degrees of freedom: 0.2 gives 7e-6 of the
IQR, 0.15 2e-7, 0.1 below 4e-9."""

ANGLE: Final = math.pi / 8
"""Angle of the ray: between 0, where one-sided forms rotate without decay, and π/4, where normal ones stop decaying."""

GROWTH: Final = 0.07
"""Largest rise of ln |φ| along a ray; on the real axis it only falls. Nulls of updates stay below it and therefore use the
usual ray (a test asserts it); forms that rise far above it give wrong results on that ray, or overflow."""

HALVINGS: Final = 8
"""Largest number of halvings of ANGLE: down to 0.003."""

LOOK: Final = 0.5
"""Step in x at which |φ| is checked for growth, which extends over several units of x."""

FINER: Final = 4
"""Divisor of STEP if the ray is not the usual one: the strip in which φ does not grow is narrower there."""

FORETOLD: Final = 1e-8
"""Predicted error (a probability) of a sum above which the step is halved. For sums S over steps h, 2h, 4h that converge
exponentially, each error is the square of the one before, so that of S_h is about δ³/δ₂² with δ = |S_h − S_2h| and
δ₂ = |S_2h − S_4h|. For nulls of updates it stays below this: no step is halved there (a test asserts it)."""

ROUGH: Final = 1e-4
"""Value of δ itself above which the step is also halved: the prediction fails there. Nulls of updates stay below 6e-5."""

AGREE: Final = 1e-6
"""Two sums agree if they differ by less, as probabilities; the finer one's error is far smaller then."""

REFINEMENTS: Final = 6
"""Largest number of times the step is halved, to 0.002; the worst known forms need two."""

DECAY: Final = 25.0
"""−ln |φ| at which the upper end is cut: e⁻²⁵ ≈ 1e-11."""

SMALL: Final = 2.3e-3
"""Value of u, in 1/(|mean| + deviation), below which φ is its Taylor polynomial of degree two to about 1e-9.

It also sets where the nodes lie. At 2e-3 the coarse sums of many nulls agree by chance, which overestimates their error."""

LAST: Final = math.log(1e9)
"""Largest x: forms with two or three degrees of freedom decay slowly and are cut there, at an error of 1e-9."""

CANTELLI: Final = 2.0
"""Means farther from 0 than this many deviations leave at most 1/(1 + 2²) = 1/5 beyond 0 (Cantelli): outside quartiles."""

MAX_STEPS: Final = 60
"""Largest number of Newton steps, safeguarded by bisection: 2⁻⁶⁰ of the bracket even if every step is a bisection."""

CLOSE: Final = 3e-4
"""Share of the form's spread: Newton stops after a smaller step. It converges quadratically, so the error is below 1e-7."""

FIRST: Final = math.log(SMALL)
"""Smallest x of the grid; the sum over the nodes below it is known."""

_COARSE: Final[Array] = np.arange(FIRST, LAST, LOOK, dtype=np.float64)
"""The x at which the ray and the end of the grid are chosen."""

_EVERY: Final = np.array([[1.0], [2.0], [4.0]])
"""The sums taken of one grid: over every node, every second and every fourth."""


def probability(w: Array, dof: Array, dw: Array) -> tuple[Array, Array]:
    """Return P(Σ_j w_j·χ²_{ν_j} ≤ 0) and its derivative along dw, row by row.

    w, dw: (n, m) weights and their derivatives; dof: (n, m) degrees of freedom, which need not be whole. A weight of 0
    contributes nothing. Returns two (n,) arrays. If the mean is more than CANTELLI deviations from 0, the result is a
    plain 0 or 1 with slope 0: enough to tell the side of the quartiles on which it lies. The same result, then exact, is
    returned if all weights have one sign; φ could grow without bound on the ray in that case.
    """
    mean, deviation = np.sum(w * dof, axis=1), np.sqrt(2.0 * np.sum(w * w * dof, axis=1))
    far = (np.abs(mean) > CANTELLI * deviation) | np.all(w >= 0.0, axis=1) | np.all(w <= 0.0, axis=1)
    value, slope = np.where(mean < 0.0, 1.0, 0.0), np.zeros(len(w))
    if not far.all():
        scale = (np.abs(mean) + deviation)[~far, None]  # the unit of u is 1/(|mean| + deviation) from here on
        value[~far], slope[~far] = _near(w[~far] / scale, dof[~far], dw[~far] / scale)
    return value, slope


def _near(w: Array, dof: Array, dw: Array) -> tuple[Array, Array]:
    usual = np.where(np.sum(w**3 * dof, axis=1) > 0.0, -ANGLE, ANGLE)
    angle, top = _side(w, dof, usual)
    value, slope = np.empty(len(w)), np.empty(len(w))
    for rows, step in ((angle == usual, STEP), (angle != usual, STEP / FINER)):
        if rows.any():
            value[rows], slope[rows] = _along(w[rows], dof[rows], dw[rows], angle[rows], step, top)
    return value, slope


def _along(w: Array, dof: Array, dw: Array, angle: Array, step: float, top: float) -> tuple[Array, Array]:
    x: Array = FIRST + step * np.arange(math.ceil((top - FIRST) / step) + 1, dtype=np.float64)
    moments = _moments(w, dof, dw)
    across, along = _terms(w, dof, dw, x, angle)
    sums = np.stack([np.sum(across[:, ::every], axis=1) for every in (1, 2, 4)])
    (value, two, four), slopes = _sum(moments, angle, FIRST, step * _EVERY, sums, np.sum(along, axis=1))
    slope = slopes[0]
    delta, before = np.abs(value - two), np.abs(two - four)
    for i in np.flatnonzero((delta**3 > FORETOLD * before**2) | (delta > ROUGH)):
        row = slice(i, i + 1)
        value[row], slope[row] = _refined(w[row], dof[row], dw[row], angle[row], x, step)
    return np.clip(value, 0.0, 1.0), slope


def _refined(w: Array, dof: Array, dw: Array, angle: Array, x: Array, step: float) -> tuple[Array, Array]:
    """Return the sum of one row, the step halved until two agree; x (nodes,): grid of the first. Not clipped."""
    sums = [np.sum(y, axis=1) for y in _terms(w, dof, dw, x, angle)]
    found = _sum(moments := _moments(w, dof, dw), angle, FIRST, np.array(step), *sums)
    for level in range(1, REFINEMENTS + 1):
        before, finer = found, step / 2**level
        for between in range(1, 2**level, 2):  # the grid again, shifted to positions without nodes so far
            sums = [
                a + np.sum(b, axis=1) for a, b in zip(sums, _terms(w, dof, dw, x - finer * between, angle), strict=True)
            ]
        found = _sum(moments, angle, FIRST - (step - finer), np.array(finer), *sums)
        if abs(found[0][0] - before[0][0]) <= AGREE:
            break
    return found


def _terms(w: Array, dof: Array, dw: Array, x: Array, angle: Array) -> tuple[Array, Array]:
    """Return the summands at the nodes, (n, nodes): Im φ and its derivative. In real arithmetic, which numpy vectorises."""
    real, imag = _factor(w, x, angle)
    square = real * real + imag * imag
    half = 0.5 * dof
    size = np.exp(-0.5 * _weighted(half, np.log(square)))
    phase = -_weighted(half, np.arctan2(imag, real))
    part = half * dw  # d ln φ = Σ ½ν·dw·i·u·conj(factor)/|factor|²
    turned = _weighted(part, real / square) - 1j * _weighted(part, imag / square)
    phi = size * np.exp(1j * phase)
    return phi.imag, (phi * turned * np.exp(x) * (1j * np.exp(1j * angle))[:, None]).imag


def _weighted(weights: Array, values: Array) -> Array:
    """Return Σ_j weights_nj·values_njk, (n, nodes), in a fixed order of summation on any machine."""
    found: Array = np.einsum("nj,njk->nk", weights, values)
    return found


def _moments(w: Array, dof: Array, dw: Array) -> Moments:
    """Return κ₁ and κ₁² + κ₂, with κ₁, κ₂ mean and variance, and their derivatives; four (n,)."""
    k1, k2 = np.sum(w * dof, axis=1), 2.0 * np.sum(w * w * dof, axis=1)
    d1, d2 = np.sum(dw * dof, axis=1), 4.0 * np.sum(w * dw * dof, axis=1)
    return k1, k1 * k1 + k2, d1, 2.0 * k1 * d1 + d2


def _sum(moments: Moments, angle: Array, last: float, step: Array, across: Array, along: Array) -> tuple[Array, Array]:
    """Return probability and slope from the sums over the nodes, of which x = last is the lowest.

    For the nodes below it, at which φ = 1 + i·κ₁·u/2 − (κ₁² + κ₂)·u²/8, the sum is two geometric series.
    """
    k1, square, d1, d_square = moments
    one = 0.5 * np.cos(angle) * math.exp(last) / np.expm1(step)
    two = -0.125 * np.sin(2.0 * angle) * math.exp(2.0 * last) / np.expm1(2.0 * step)
    per = step / math.pi
    value = 0.5 - (across * step + angle) / math.pi - per * (k1 * one + square * two)
    return value, -along * step / math.pi - per * (d1 * one + d_square * two)


def _side(w: Array, dof: Array, angle: Array) -> tuple[Array, float]:
    """Return the rays' angles (n,), and the x at which |φ| has decayed on all of them.

    An angle is the usual one unless |φ| grows on its ray; else the other side's, or half that, and so on.
    """
    for attempt in range(2 * HALVINGS):
        real, imag = _factor(w, _COARSE, angle)
        fallen = _weighted(0.25 * dof, np.log(real * real + imag * imag))
        grows = np.min(fallen - np.maximum.accumulate(np.maximum(fallen, 0.0), axis=1), axis=1) < -GROWTH
        if not grows.any():
            break
        angle = np.where(grows, (-1.0 if attempt % 2 == 0 else -0.5) * angle, angle)
    decayed = np.all(fallen >= DECAY, axis=0)
    return angle, float(_COARSE[np.argmax(decayed)]) if decayed.any() else LAST


def _factor(w: Array, x: Array, angle: Array) -> tuple[Array, Array]:
    """Return the real and imaginary part of 1 − i·w·u, (n, m, nodes), on the ray u = e^{x + i·angle}; x: (nodes,)."""
    wu = w[:, :, None] * np.exp(x)
    return 1.0 + wu * np.sin(angle)[:, None, None], -wu * np.cos(angle)[:, None, None]


def quantiles(weights: Weights, dof: Array, p: Array, mean: float, bounds: tuple[float, float]) -> Array:
    """Return the t with P(Σ_j w_j(t)·χ²_{ν_j} ≤ 0) = p for each p between 0.2 and 0.8, shape (n,).

    weights: see `Weights`; the probability must grow with t. dof: (m,). mean: t's mean or near it, between the bounds.
    Newton's method from the Cornish–Fisher expansion to the skewness, with bisection for steps that leave the bracket.
    """
    t, spread = _start(weights, dof, p, mean, bounds)
    low, high = np.full(len(p), bounds[0]), np.full(len(p), bounds[1])
    moving = np.ones(len(p), dtype=bool)
    for _ in range(MAX_STEPS):
        w, dw = weights(t)
        value, density = probability(w, np.broadcast_to(dof, w.shape), dw)
        low, high = np.where(value < p, t, low), np.where(value < p, high, t)
        newton = t - (value - p) / np.where(density > 0.0, density, math.inf)
        close = (density > 0.0) & (np.abs(newton - t) <= CLOSE * spread)
        inside = (newton > low) & (newton < high) & (density > 0.0)
        t = np.where(moving, np.where(close | inside, newton, 0.5 * (low + high)), t)
        moving &= ~close
        if not moving.any():
            break
    return t


@functools.cache
def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _start(weights: Weights, dof: Array, p: Array, mean: float, bounds: tuple[float, float]) -> tuple[Array, float]:
    """Return a first guess (n,), and t's standard deviation."""
    (w,), (dw,) = weights(np.array([mean]))
    variance, third = 2.0 * float(w**2 @ dof), 8.0 * float(w**3 @ dof)
    deviation = math.sqrt(variance)
    spread = deviation / -float(dw @ dof)
    z = np.array([_normal_quantile(float(x)) for x in p])
    guess = mean + spread * (z + third / (variance * deviation) * (z * z - 1.0) / 6.0)
    room = 0.2
    return np.clip(guess, bounds[0] + room * (mean - bounds[0]), bounds[1] - room * (bounds[1] - mean)), spread
