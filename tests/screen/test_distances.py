import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.policy import Comparison
from tests.screen.cases import ALL, Module, alignment_vector, factors, module
from tests.screen.oracle import Dense, median_and_iqr

SHAPES = [(24, 24), (16, 40), (40, 16), (64, 48)]
SAMPLE = 20_000
IQR_ERROR = 5 * 1.17 / SAMPLE**0.5
"""Five standard errors of a sample's IQR, relative (1.17/√n for a normal one)."""


@pytest.mark.parametrize("shape", [*SHAPES, (130, 258), (1000, 40)])
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("norm", [0.01, 1.0, 100.0])
def test_distances_norm_and_cosine_agree_with_the_dense_oracle(shape: tuple[int, int], rank: int, norm: float) -> None:
    m = module(alignment_vector(*shape))
    b, a = factors(*shape, rank, norm=norm)
    dense = Dense(m.v.double(), 4)
    scored, cosine = m.measure(b, a)
    for comparison in ALL:
        expected = float(dense.distance(b @ a, comparison))
        assert scored[comparison].distance == pytest.approx(expected, rel=1e-6), comparison
    assert cosine == pytest.approx(dense.cosine(b @ a), rel=1e-6)


@pytest.mark.parametrize("comparison", ALL)
@pytest.mark.parametrize(("shape", "rank", "norm"), [((24, 24), 1, 1.0), ((16, 40), 3, 0.05), ((40, 16), 12, 20.0)])
def test_the_null_agrees_with_literal_sampling(
    comparison: Comparison, shape: tuple[int, int], rank: int, norm: float
) -> None:
    m = module(alignment_vector(*shape))
    b, a = factors(*shape, rank, norm=norm)
    scored = m.measure(b, a)[0][comparison]
    assert scored.null is not None
    median, iqr = median_and_iqr(Dense(m.v.double(), 4).null(b @ a, comparison, SAMPLE))
    assert scored.null.iqr == pytest.approx(iqr, rel=IQR_ERROR)
    assert scored.null.median == pytest.approx(median, abs=5 * 0.93 * iqr / SAMPLE**0.5)
    assert scored.score == pytest.approx((scored.distance - scored.null.median) / scored.null.iqr, rel=1e-6, abs=1e-6)


def test_random_updates_score_around_zero_with_quartiles_at_half() -> None:
    m = module(alignment_vector(48, 64))
    measured = [m.measure(*_plain(48, 64, 3, seed))[0] for seed in range(300)]
    for comparison in ALL:
        scores = np.array([scored[comparison].score for scored in measured], dtype=float)
        low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
        assert abs(middle) < 0.2, comparison
        assert high - low == pytest.approx(1.0, abs=0.3), comparison


def _plain(d_out: int, d_in: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, rank, generator=g), torch.randn(rank, d_in, generator=g)


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 6),
    extra=st.integers(0, 4),
    seed=st.integers(0, 10_000),
    moved=st.sampled_from([2.0**-20, 1.0, 2.0**20]),
    comparison=st.sampled_from(ALL),
)
def test_the_score_is_of_the_update_not_of_its_factors(
    rank: int, extra: int, seed: int, moved: float, comparison: Comparison
) -> None:
    m = MODULE
    b, a = factors(32, 24, rank, seed=seed)
    g = torch.Generator().manual_seed(seed)
    gauge = torch.randn(rank, rank, generator=g, dtype=torch.float64) + 3 * torch.eye(rank, dtype=torch.float64)
    b2 = torch.cat([moved * b @ gauge, torch.zeros(32, extra, dtype=torch.float64)], 1)
    a2 = torch.cat([torch.linalg.solve(gauge, a) / moved, torch.zeros(extra, 24, dtype=torch.float64)], 0)
    assert m.score(b2, a2, comparison) == pytest.approx(m.score(b, a, comparison), rel=1e-5, abs=1e-5)


MODULE = module(alignment_vector(32, 24, seed=3))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), comparison=st.sampled_from(ALL), rank=st.integers(1, 5))
def test_permuting_the_inputs_of_both_changes_nothing(seed: int, comparison: Comparison, rank: int) -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    b, a = factors(32, 24, rank, seed=seed)
    other = module(MODULE.v[:, order].contiguous())
    assert other.score(b, a[:, order], comparison) == pytest.approx(MODULE.score(b, a, comparison), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("comparison", [Comparison.PROJECTION, Comparison.INPUT])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaling_the_update_changes_no_score(comparison: Comparison, scale: float) -> None:
    b, a = factors(32, 24, 3)
    assert MODULE.score(b * scale, a, comparison) == pytest.approx(MODULE.score(b, a, comparison), rel=1e-5)


def planted(
    m: Module, comparison: Comparison, rank: int, share: float, seed: int, norm: float
) -> tuple[Tensor, Tensor]:
    """A random update of which `share` of the energy is what `comparison` looks for, at ‖ΔW‖_F = norm."""
    d_out, d_in = m.v.shape
    b, a = (x.double() for x in _plain(d_out, d_in, rank, seed))
    if comparison is Comparison.INPUT:
        part = (
            torch.randn(rank, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            @ m.r[:, :4].double().T
        )
        a = (1 - share) ** 0.5 * a / a.norm() + share**0.5 * part / part.norm()
    elif comparison is Comparison.ALIGNMENT:
        part = -m.v.double() @ torch.linalg.pinv(a)
        b = (1 - share) ** 0.5 * b / b.norm() + share**0.5 * part / part.norm()
    else:  # further from the aligned subspace than chance: nothing of it left
        b -= share**0.5 * m.u[:, :4].double() @ (m.u[:, :4].double().T @ b)
    return b * (norm / float((b @ a).norm())), a


CORNERS = list(itertools.product([(32, 48), (128, 96), (192, 320)], [1, 4, 16], [0.1, 10.0], [0.1, 10.0]))


@pytest.mark.parametrize("comparison", [Comparison.INPUT, Comparison.ALIGNMENT])
def test_one_threshold_serves_every_dimension_rank_and_norm(comparison: Comparison) -> None:
    """Norms of ΔW and V vary 100-fold; AUROC of planted against random updates, pooled over everything, ≥ 0.98."""
    bad, good = [], []
    for i, (shape, rank, norm, v_norm) in enumerate(CORNERS):
        m = module(alignment_vector(*shape, seed=i, norm=v_norm))
        for seed in range(3):
            bad.append(m.score(*planted(m, comparison, rank, 0.5, seed, norm), comparison))
            good.append(m.score(*planted(m, comparison, rank, 0.0, 100 + seed, norm), comparison))
    auroc = (np.array(bad)[:, None] > np.array(good)[None, :]).mean()
    assert auroc >= 0.98


@pytest.mark.parametrize(("shape", "rank", "norm", "v_norm"), CORNERS)
def test_aligned_orthogonal_and_anti_aligned_updates_are_in_that_order(
    shape: tuple[int, int], rank: int, norm: float, v_norm: float
) -> None:
    m = module(alignment_vector(*shape, norm=v_norm))
    b, a = m.u[:, :rank].double(), m.r[:, :rank].double().T
    b = b * (norm / float((b @ a).norm()))
    away, _ = factors(*shape, b.shape[1], norm=norm)
    away = away - m.u.double() @ (m.u.double().T @ away)  # writes nothing alignment writes
    aligned, orthogonal, anti = (m.score(x, a, Comparison.ALIGNMENT) for x in (b, away, -b))
    assert aligned < -3.0 < orthogonal < 3.0 < anti
    near, far = (m.score(x, a, Comparison.PROJECTION) for x in (b, away))
    assert near < -3.0 < 0.0 < far
    _, elsewhere = factors(*shape, b.shape[1])
    elsewhere = elsewhere - (elsewhere @ m.r.double()) @ m.r.double().T
    assert m.score(b, elsewhere, Comparison.INPUT) < 0.0
    assert m.score(b, a, Comparison.INPUT) > 3.0


def test_the_alignment_score_is_odd_when_the_update_is_small() -> None:
    b, a = factors(64, 48, 4, norm=1e-4)
    m = module(alignment_vector(64, 48))
    one, other = m.score(b, a, Comparison.ALIGNMENT), m.score(-b, a, Comparison.ALIGNMENT)
    assert one == pytest.approx(-other, rel=1e-3)


def test_no_score_where_the_null_does_not_vary() -> None:
    flat = module(torch.eye(16).bfloat16(), top_k=16)  # C' = I: every update is as near as every other
    b, a = factors(16, 16, 2)
    scored, cosine = flat.measure(b, a)
    assert scored[Comparison.PROJECTION].score is None
    assert cosine == pytest.approx(1.0)
    every = flat.measure(b, a, k=16)[0]  # all inputs
    assert every[Comparison.INPUT].score is None
    one_column = torch.zeros(16, 16)
    one_column[:, 0] = 1.0
    away = a.clone()
    away[:, 0] = 0.0
    assert (
        module(one_column).measure(b, away)[0][Comparison.ALIGNMENT].score is None
    )  # V·ΔWᵀ = 0: nothing to be against


def test_an_update_lost_beside_v_has_no_alignment_score() -> None:
    b, a = factors(16, 16, 2, norm=1e-12)
    assert module(alignment_vector(16, 16)).measure(b, a)[0][Comparison.ALIGNMENT].score is None


def test_the_update_that_is_v_itself_lies_at_distance_zero() -> None:
    b, a = factors(32, 24, 2)
    v = (b @ a).float()
    scored, _ = module(v).measure(b.float(), a.float())
    assert scored[Comparison.ALIGNMENT].distance == pytest.approx(0.0, abs=2e-3)
    assert scored[Comparison.ALIGNMENT].score is not None
