import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.combined_score import Total, block_of, by_block, expected_of, total_of, totals_of, worst_set
from app.domain.policy import Comparison, Policy
from app.domain.verdict import Decision, ModuleVerdict, Reason

INPUT = Comparison.INPUT
NORMAL_IQR = 1.3489795
"""Of a standard normal: scores have an IQR of 1."""


def verdict(name: str, score: float | None, norm: float | None = 1.0, share: float | None = 0.1) -> ModuleVerdict:
    return ModuleVerdict(
        name, 4, 1.0, {INPUT: score}, None, norm, 1.0, 1.0, Decision.KEEP, Reason.BELOW_TAU, input_share=share
    )


def total(*scores: float | None) -> Total:
    return total_of("", [verdict(f"m.{i}", score) for i, score in enumerate(scores)], INPUT)


def obvious(scores: list[float]) -> float:
    ranked = sorted(scores, reverse=True)
    return max(sum(ranked[:k]) / math.sqrt(k) for k in range(1, len(ranked) + 1))


SCORES = st.lists(st.floats(-50.0, 50.0), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(SCORES)
def test_is_the_largest_of_the_obvious_sums(scores: list[float]) -> None:
    assert total(*scores).score == pytest.approx(obvious(scores), abs=2e-6)


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_padding_never_lowers_it(scores: list[float], padding: list[float]) -> None:
    """The dodge: decoy modules beside the harmful ones, of any score."""
    alone, padded = total(*scores).score, total(*scores, *padding).score
    assert alone is not None
    assert padded is not None
    assert padded >= alone - 1e-6


@settings(max_examples=50, deadline=None)
@given(SCORES, st.randoms())
def test_the_order_of_modules_does_not_matter(scores: list[float], random: object) -> None:
    shuffled = list(scores)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert total(*scores).score == total(*shuffled).score


def test_thin_harm_adds_up_with_the_root_of_its_modules() -> None:
    assert total(*[2.0] * 64).score == pytest.approx(16.0)
    assert worst_set([2.0] * 64) == 64
    assert total(*[2.0] * 4, *[-9.0] * 100).score == pytest.approx(4.0)


@pytest.mark.parametrize("n", [1, 2, 4, 7, 28, 64, 224, 448])
def test_the_null_is_the_stated_one(n: int) -> None:
    draws = np.random.default_rng(n).standard_normal((4000, n)) / NORMAL_IQR
    ranked = -np.sort(-draws, axis=1)
    sample = (ranked.cumsum(1) / np.sqrt(np.arange(1, n + 1))).max(1)
    low, middle, high = np.quantile(sample, [0.25, 0.5, 0.75])
    assert abs(middle - expected_of(n)) < (0.05 if n != 2 else 0.12)
    assert 0.68 < high - low < (1.1 if n == 1 else 0.92)
    assert total(*draws[0]).score == pytest.approx(sample[0], abs=2e-6)


def test_what_has_no_score_counts_for_nothing() -> None:
    found = total(None, 1.5, math.nan, None)
    assert (found.modules, found.scored, found.score) == (4, 1, 1.5)
    nothing = total(None, None)
    assert (nothing.score, nothing.expected, nothing.scored) == (None, None, 0)
    empty = total()
    assert (empty.modules, empty.score, empty.update_norm, empty.input_share) == (0, None, 0.0, None)


def test_energy_is_weighted_by_norms() -> None:
    modules = [verdict("a", 0.0, 3.0, 0.5), verdict("b", 0.0, 4.0, 0.0), verdict("c", None, 0.0, None)]
    found = total_of("", modules, INPUT)
    assert found.update_norm == pytest.approx(5.0)
    assert found.input_share == pytest.approx(0.5 * 9 / 25)


@pytest.mark.parametrize("norm", [None, math.inf, math.nan, 1e300])
def test_a_norm_that_is_not_finite_makes_no_number(norm: float | None) -> None:
    found = total_of("", [verdict("a", 0.0, norm), verdict("b", 0.0, 1.0)], INPUT)
    assert found.update_norm is None


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers.3"),
        ("language_model.model.layers.12.mlp.up_proj", "language_model.model.layers.12"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0"),
        ("layers.7.q_proj", "layers.7"),
        ("m.0", ""),
        ("lm_head", ""),
    ],
)
def test_blocks_are_told_by_name(module: str, block: str) -> None:
    assert block_of(module) == block


def test_blocks_come_in_natural_order_and_hold_their_own() -> None:
    modules = [verdict(f"model.layers.{i}.mlp.{kind}", float(i)) for i in (10, 2, 0) for kind in ("a", "b")]
    assert list(by_block(modules)) == [f"model.layers.{i}" for i in (0, 2, 10)]
    found = totals_of(modules, INPUT)
    assert [b.score for b in found.blocks] == [0.0, pytest.approx(2.0 * 2**0.5), pytest.approx(10.0 * 2**0.5)]
    assert found.adapter.scored == 6


@pytest.mark.parametrize("budget", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["max_block_score", "max_adapter_score"])
def test_a_budget_is_a_finite_number_or_none(field: str, budget: float) -> None:
    with pytest.raises(ValueError, match=field):
        Policy(**{field: budget})  # type: ignore[arg-type]
    assert getattr(Policy(), field) is None
