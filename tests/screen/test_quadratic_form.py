import math
from typing import Any

import numpy as np
import pytest

from app.screen import null_quartiles as nulls
from app.screen import quadratic_form as quadratic
from app.screen.quadratic_form import Array, probability, quantiles
from tests.screen.oracle import probability_below_zero

P = np.array([0.25, 0.5, 0.75])


def share_quantiles(values: Array, k: float, rest: float) -> Array:
    """Quantiles of Σ x_i·χ²_k/(Σ x_i·χ²_k + Σ x_i·χ²_rest)."""
    dof = np.concatenate([np.full(len(values), k), np.full(len(values), rest)])

    def weights(t: Array) -> tuple[Array, Array]:
        w = np.concatenate([values * (1.0 - t[:, None]), -values * t[:, None]], axis=1)
        return w, np.broadcast_to(-np.concatenate([values, values]), w.shape)

    return quantiles(weights, dof, P, k / (k + rest), (0.0, 1.0))


@pytest.mark.parametrize("d", [8, 32, 128, 4096, 28672])
def test_matches_the_beta_distribution_where_it_has_a_closed_form(d: int) -> None:
    # χ²_2/(χ²_2 + χ²_{d−2}) ~ Beta(1, (d − 2)/2): P(T ≤ t) = 1 − (1 − t)^{(d−2)/2}
    exact = -np.expm1(np.log1p(-P) * 2.0 / (d - 2))
    np.testing.assert_allclose(share_quantiles(np.ones(1), 2.0, d - 2.0), exact, rtol=1e-7)


def test_equal_weights_are_one_chi_square_with_all_degrees_of_freedom() -> None:
    one = share_quantiles(np.ones(1), 12.0, 300.0)
    np.testing.assert_allclose(share_quantiles(np.full(4, 0.25), 3.0, 75.0), one, rtol=1e-9)


def test_a_symmetric_form_is_below_zero_half_of_the_time() -> None:
    w = np.array([[1.0, -1.0, 0.3, -0.3]])
    value, _ = probability(w, np.full((1, 4), 3.0), np.zeros((1, 4)))
    assert value[0] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("w", "expected"), [([1.0, 2.0], 0.0), ([-1.0, -0.1], 1.0)])
def test_weights_of_one_sign_leave_no_doubt(w: list[float], expected: float) -> None:
    value, _ = probability(np.array([w]), np.full((1, 2), 40.0), np.zeros((1, 2)))
    assert value[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rest", [0.0, 6.6e-6])
def test_a_few_weights_of_one_sign_near_a_mean_of_zero_leave_no_doubt_either(sign: float, rest: float) -> None:
    """Few degrees of freedom at a mean within CANTELLI deviations, and many at next to no weight: φ would overflow."""
    w, dof, dw = sign * np.array([[1.335, rest]]), np.array([[1.0, 83600.0]]), np.array([[0.7, -1.0]])
    value, slope = probability(w, dof, dw)
    assert (value[0], slope[0]) == (0.0 if sign > 0.0 else 1.0, 0.0)


@pytest.mark.parametrize("mirrored", [1.0, -1.0])
@pytest.mark.parametrize(
    "terms",
    [  # (weight, degrees of freedom): on the usual ray φ overflowed, or came out wrong by up to 1 unnoticed
        [(1000.0, 6.7), (0.001, 30000.0), (-1658.1, 1.0)],
        [(1000.0, 1.0), (0.0012, 41000.0), (-153.99, 1.0)],
        [(0.525, 1.0), (2.24e-5, 10879.0), (-0.00288, 178.5)],
        [(0.54, 1.0), (8.32e-7, 20000.0), (-0.00967, 80.99)],
        [(1000.0, 1.0), (2.2, 106.1), (-282.0, 1.0)],
        [(0.407, 1.0), (2.12e-6, 10000.0), (-3.64e-9, 1e6)],
        [(0.49, 10000.0), (91.3, 1.0), (1000.0, 1.0), (-0.00446, 1e6)],
    ],
)
def test_many_small_weights_on_the_side_of_few_large_ones(terms: list[tuple[float, float]], mirrored: float) -> None:
    w, dof = (list(column) for column in zip(*terms, strict=True))
    w = [mirrored * x for x in w]
    exact = probability_below_zero(w, dof)
    row, nu, along = np.array([w]), np.array([dof]), -np.ones((1, len(w)))
    h = 1e-6 / sum(dof)
    value, slope = probability(row, nu, along)
    assert value[0] == pytest.approx(exact, abs=2e-7)
    assert np.isfinite(slope[0])
    ups, downs = (probability_below_zero([x - sign * h for x in w], dof) for sign in (1.0, -1.0))
    assert slope[0] == pytest.approx((ups - downs) / (2.0 * h), rel=1e-3, abs=1e-4 * sum(dof))


FEW_HEAVY = [  # found by drawing many: with STEP alone the errors were up to 1.2e-3
    [(1000.0, 1.0), (15.4, 368.9), (0.0531, 81.63), (-250.0, 20.76)],
    [(0.001, 1.0), (0.245, 1.0), (0.001, 320.0), (0.001, 1.0), (-0.0192, 18.0)],
    [(0.00506, 10000.0), (39.7, 1.0), (1.29, 1.0), (-4.77e-5, 1e6)],
    [(0.146, 2.0), (-0.34703, 1.0), (-0.0028977, 1002.1), (0.036, 74.76)],
]


def drawn(seed: int) -> list[tuple[float, float]]:
    """A form in which one to three terms of one or two degrees of freedom meet one to four of many, near balance."""
    rng = np.random.default_rng(seed)
    heavy, light = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    dof = np.concatenate([rng.integers(1, 3, heavy), 10 ** rng.uniform(0.5, 6, light)])
    w = 10 ** rng.uniform(-3, 0, heavy + light) * rng.choice([-1.0, 1.0], heavy + light) / np.sqrt(2 * dof)
    at, deviation = int(rng.integers(len(w))), math.sqrt(2 * float(w**2 @ dof))
    w[at] -= (float(w @ dof) - rng.uniform(-1, 1) * deviation) / dof[at]
    return list(zip(w.tolist(), dof.tolist(), strict=True))


@pytest.mark.parametrize(
    "terms", [*FEW_HEAVY, *(drawn(seed) for seed in range(60))], ids=lambda terms: f"{terms[0][0]:.3g}"
)
def test_where_few_heavy_ones_decide_the_step_is_fine_enough(terms: list[tuple[float, float]]) -> None:
    w, dof = (np.array([column]) for column in zip(*terms, strict=True))
    (found,), _ = probability(w, dof, -np.ones_like(w))
    if np.all(w > 0) or np.all(w < 0) or found in (0.0, 1.0):  # beyond CANTELLI: only the side is told
        return
    assert found == pytest.approx(probability_below_zero(w[0].tolist(), dof[0].tolist()), abs=1e-6)


@pytest.mark.parametrize("terms", FEW_HEAVY[:2])
def test_their_slopes_are_right_too(terms: list[tuple[float, float]]) -> None:
    w, dof = (np.array([column]) for column in zip(*terms, strict=True))
    h = 1e-6 * float(np.abs(w).max())
    ups, downs = (probability_below_zero((w[0] - sign * h).tolist(), dof[0].tolist()) for sign in (1.0, -1.0))
    _, slope = probability(w, dof, -np.ones_like(w))
    assert slope[0] == pytest.approx((ups - downs) / (2.0 * h), rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("d", [64, 4096])
def test_nulls_of_updates_keep_the_usual_ray_and_step(n: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    share = np.linspace(1.0, 0.3, n) ** 2
    share /= share.sum()
    nodes, counts = np.linspace(0.0, 1.0, 12).tolist(), [d / 12] * 12
    side, refined, seen, halved = quadratic._side, quadratic._refined, [], []

    def watched(w: Array, dof: Array, angle: Array) -> tuple[Array, float]:
        found, top = side(w, dof, angle)
        seen.append(bool(np.array_equal(found, angle)))
        return found, top

    def noted(*row: Any) -> tuple[Array, Array]:
        halved.append(row)
        return refined(*row)

    monkeypatch.setattr(quadratic, "_side", watched)
    monkeypatch.setattr(quadratic, "_refined", noted)
    nulls.share_quartiles(share, 4, d)
    nulls.projection_quartiles(share, nodes, counts)
    nulls.inner_quartile(share, np.linspace(0.1, 1.0, n), d)
    assert seen
    assert all(seen)
    assert not halved


def test_zero_weights_count_for_nothing() -> None:
    w, dof = np.array([[1.0, -0.2]]), np.array([[3.0, 11.0]])
    padded, _ = probability(np.array([[1.0, -0.2, 0.0]]), np.array([[3.0, 11.0, 50.0]]), np.zeros((1, 3)))
    plain, _ = probability(w, dof, np.zeros((1, 2)))
    assert padded[0] == pytest.approx(plain[0], abs=1e-12)


def test_the_derivative_is_the_slope() -> None:
    w, dw, dof = np.array([[1.0, 0.4, -0.05]]), np.array([[-1.0, -0.4, -1.0]]), np.array([[4.0, 4.0, 60.0]])
    _, slope = probability(w, dof, dw)
    h = 1e-5
    (up,), (down,) = (probability(w + sign * h * dw, dof, dw)[0] for sign in (1.0, -1.0))
    assert slope[0] == pytest.approx((up - down) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_sampling_on_uneven_weights(k: int) -> None:
    values, n = np.array([0.7, 0.2, 0.1]), 400_000
    rng = np.random.default_rng(1)
    near, far = (rng.chisquare(dof, (n, 3)) @ values for dof in (k, 90))
    sample = np.quantile(near / (near + far), P)
    density_error = 4.0 / math.sqrt(n)  # four standard errors of a quartile, generously
    np.testing.assert_allclose(share_quantiles(values, k, 90.0), sample, rtol=2.0 * density_error)
