"""Compiled quadratic_form.probability: the same formulas, grid and cuts, without temporaries and without the interpreter.

Logarithm and arc tangent are polynomials and ratios of polynomials in plain arithmetic, which the compiler vectorises;
calls into the C library would not be vectorised. Both are within a few 2⁻⁵³ of numpy's; sums run in a fixed order.
"""

import math
from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types  # type: ignore[import-untyped]
from numba.extending import intrinsic  # type: ignore[import-untyped]

from app.screen.compiled.numba_support import compiled

NODES: Final = 1024
"""Capacity for the nodes of the grid: (LAST + |ln SMALL|)/STEP is 216 at the settings of screen/quadratic_form.py."""

_TAN_PI_8: Final = math.tan(math.pi / 8)
_LN2: Final = math.log(2.0)


@intrinsic  # type: ignore[untyped-decorator]
def _bits(_: Any, x: Any) -> Any:
    """Return a float64's bits as int64."""
    return types.int64(types.float64), lambda _c, b, _s, args: b.bitcast(args[0], ir.IntType(64))


@intrinsic  # type: ignore[untyped-decorator]
def _float(_: Any, bits: Any) -> Any:
    """Reverse `_bits`."""
    return types.float64(types.int64), lambda _c, b, _s, args: b.bitcast(args[0], ir.DoubleType())


@compiled
def _log(x: Any) -> Any:
    """Return ln x for a normal x > 0: 2·artanh(s), s = (m − 1)/(m + 1), of the mantissa m in (√½, √2]; s²² ≤ 1e-17."""
    bits = _bits(x)
    exponent = (bits >> 52) - 1023
    m = _float((bits & 0xFFFFFFFFFFFFF) | (1023 << 52))
    large = m > math.sqrt(2.0)
    m = 0.5 * m if large else m
    e = float(exponent) + (1.0 if large else 0.0)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1.0 / 21.0
    p = p * z + 1.0 / 19.0
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    return e * _LN2 + 2.0 * s * (1.0 + z * p)


@compiled
def _angle(y: Any, x: Any) -> Any:
    """Return atan2(y, x), not both zero; rational approximation of S. L. Moshier's Cephes, atan.c (|q| ≤ 0.66)."""
    ax, ay = abs(x), abs(y)
    low, high = min(ax, ay), max(ax, ay)
    steep = low > _TAN_PI_8 * high
    q = ((low - high) if steep else low) / ((low + high) if steep else high)
    z = q * q
    p = -8.750608600031904122785e-1
    p = p * z - 1.615753718733365076637e1
    p = p * z - 7.500855792314704667340e1
    p = p * z - 1.228866684490136173410e2
    p = p * z - 6.485021904942025371773e1
    d = z + 2.485846490142306297962e1
    d = d * z + 1.650270098316988542046e2
    d = d * z + 4.328810604912902668951e2
    d = d * z + 4.853903996359136964868e2
    d = d * z + 1.945506571482613964425e2
    a = q + q * z * p / d + (0.25 * math.pi if steep else 0.0)
    a = 0.5 * math.pi - a if ay > ax else a
    a = math.pi - a if x < 0.0 else a
    return -a if y < 0.0 else a


@compiled
def _grows(w: Any, dof: Any, angle: float, u: Any, growth: float) -> bool:
    """Return whether ln |φ| rises by more than `growth` at one of the u along the ray."""
    fallen, sine, cosine = np.zeros(len(u)), math.sin(angle), math.cos(angle)
    for j in range(len(w)):
        turn, grow, quarter = w[j] * sine, w[j] * cosine, 0.25 * dof[j]
        for k in range(len(u)):
            real, imag = 1.0 + turn * u[k], grow * u[k]
            fallen[k] += quarter * _log(real * real + imag * imag)
    most = 0.0
    for k in range(len(u)):
        most = max(most, fallen[k])
        if fallen[k] < most - growth:
            return True
    return False


@compiled
def _top(w: Any, dof: Any, sine: float, cosine: float, decay: float, last: float) -> float:
    """Return the largest node: the one at which −ln|φ| has reached `decay`, found by eight bisections."""
    low, high = 0.0, last
    for _ in range(8):
        u = math.exp(0.5 * (low + high))
        fallen = 0.0
        for j in range(len(w)):
            real, imag = 1.0 + w[j] * u * sine, w[j] * u * cosine
            fallen += 0.25 * dof[j] * _log(real * real + imag * imag)
        if fallen >= decay:
            high = 0.5 * (low + high)
        else:
            low = 0.5 * (low + high)
    return high


@compiled
def _sums(
    w: Any, dof: Any, dw: Any, top: float, nodes: int, step: float, sine: float, cosine: float
) -> tuple[float, float, float, float]:
    """Return Σ Im φ and Σ Im φ·(d ln φ) over the grid of one row; Σ Im φ over every second node, over every fourth."""
    u, size, phase, across, along = (
        np.empty(NODES),
        np.zeros(NODES),
        np.zeros(NODES),
        np.zeros(NODES),
        np.zeros(NODES),
    )
    for k in range(nodes):
        u[k] = math.exp(top - step * k)
    for j in range(len(w)):
        turn, grow, half, slope = w[j] * sine, -w[j] * cosine, 0.5 * dof[j], 0.5 * dof[j] * dw[j]
        for k in range(nodes):
            real, imag = 1.0 + turn * u[k], grow * u[k]
            square = real * real + imag * imag
            size[k] += half * _log(square)
            phase[k] -= half * _angle(imag, real)
            across[k] += slope * real / square
            along[k] -= slope * imag / square
    total = slopes = second = fourth = 0.0
    for k in range(nodes):
        scale = math.exp(-0.5 * size[k])
        re, im = scale * math.cos(phase[k]), scale * math.sin(phase[k])
        # d ln φ = i·u·e^{i·angle}·(across + i·along)
        d_re = -u[k] * (across[k] * sine + along[k] * cosine)
        d_im = u[k] * (across[k] * cosine - along[k] * sine)
        total += im
        if k % 2 == 0:
            second += im
            fourth += im if k % 4 == 0 else 0.0
        slopes += re * d_im + im * d_re
    return total, slopes, second, fourth


@compiled
def _probability_from_sums(
    total: float, slopes: float, end: float, step: float, turned: float, moments: Any
) -> tuple[float, float]:
    """Return probability and slope from the sums over the nodes, the lowest of which is x = end."""
    mean, square, d_mean, d_square = moments
    u, per = math.exp(end), step / math.pi
    one = 0.5 * math.cos(turned) * u / math.expm1(step)
    two = -0.125 * math.sin(2.0 * turned) * u * u / math.expm1(2.0 * step)
    value = 0.5 - (total * step + turned) / math.pi - per * (mean * one + square * two)
    return value, -slopes * step / math.pi - per * (d_mean * one + d_square * two)


@compiled
def _row(w: Any, dof: Any, dw: Any, setting: Any) -> tuple[float, float]:
    """Return value and slope for one row; setting: (STEP, ANGLE, DECAY, ln SMALL, LAST, CANTELLI, GROWTH,
    HALVINGS, LOOK, FINER, FORETOLD, ROUGH, AGREE, REFINEMENTS)."""
    step, angle, decay, ln_small, last, cantelli, growth, halvings, look, narrower = setting[:10]
    foretold, rough, agree, refinements = setting[10:]
    mean = variance = skew = lowest = highest = 0.0
    for j in range(len(w)):
        lowest, highest = min(lowest, w[j]), max(highest, w[j])
        mean += w[j] * dof[j]
        variance += 2.0 * w[j] * w[j] * dof[j]
        skew += w[j] * w[j] * w[j] * dof[j]
    if abs(mean) > cantelli * math.sqrt(variance) or lowest == 0.0 or highest == 0.0:
        return (1.0 if mean < 0.0 else 0.0), 0.0
    scale = abs(mean) + math.sqrt(variance)
    w, dw = w / scale, dw / scale
    turned = -angle if skew > 0.0 else angle
    usual = turned
    seen = np.exp(np.arange(ln_small, last, look))
    for attempt in range(2 * halvings):
        if not _grows(w, dof, turned, seen, growth):
            break
        turned = -turned if attempt % 2 == 0 else -0.5 * turned
    step = step if turned == usual else step / narrower
    sine, cosine = math.sin(turned), math.cos(turned)
    top = _top(w, dof, sine, cosine, decay, last)
    nodes = min(math.ceil((top - ln_small) / step), NODES)
    total, slopes, second, fourth = _sums(w, dof, dw, top, nodes, step, sine, cosine)
    k1 = k2 = d1 = d2 = 0.0
    for j in range(len(w)):
        k1 += w[j] * dof[j]
        k2 += 2.0 * w[j] * w[j] * dof[j]
        d1 += dw[j] * dof[j]
        d2 += 4.0 * w[j] * dw[j] * dof[j]
    moments = (k1, k1 * k1 + k2, d1, 2.0 * k1 * d1 + d2)
    end = top - step * (nodes - 1)
    value, slope = _probability_from_sums(total, slopes, end, step, turned, moments)
    two, _ = _probability_from_sums(second, 0.0, end + step * ((nodes - 1) % 2), 2.0 * step, turned, moments)
    four, _ = _probability_from_sums(fourth, 0.0, end + step * ((nodes - 1) % 4), 4.0 * step, turned, moments)
    delta, before = abs(value - two), abs(two - four)
    if delta**3 > foretold * before**2 or delta > rough:
        for level in range(1, refinements + 1):
            finer, coarse = step / 2**level, value
            for between in range(1, 2**level, 2):
                more, steeper, _, _ = _sums(w, dof, dw, top - finer * between, nodes, step, sine, cosine)
                total += more
                slopes += steeper
            value, slope = _probability_from_sums(total, slopes, end - (step - finer), finer, turned, moments)
            if abs(value - coarse) <= agree:
                break
    return min(max(value, 0.0), 1.0), slope


@compiled
def _probability(w: Any, dof: Any, dw: Any, setting: Any, value: Any, slope: Any) -> None:
    for i in range(len(w)):
        value[i], slope[i] = _row(w[i], dof, dw[i], setting)


def probability(w: Any, dof: Any, dw: Any, setting: tuple[float, ...]) -> tuple[Any, Any]:
    """Compute quadratic_form.probability for rows with equal degrees of freedom (m,); setting: that module's constants."""
    value, slope = np.empty(len(w)), np.empty(len(w))
    rows, slopes = (np.ascontiguousarray(x, np.float64) for x in (w, dw))
    _probability(rows, np.ascontiguousarray(dof, np.float64), slopes, setting, value, slope)
    return value, slope
