"""Reliability measures against cases whose right value is known by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.safety.calibration import auarc, ece


def test_a_perfect_uncertainty_scores_the_maximum_of_all_orders() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(40) < 0.6
    perfect = auarc(right, right + 0.001 * rng.random(40))
    assert all(auarc(right, rng.random(40)) <= perfect for _ in range(200))
    assert auarc(right, -(right + 0.001 * rng.random(40))) < auarc(right, rng.random(40)) < perfect


def test_the_maximum_is_the_one_the_docstring_gives() -> None:
    for p in (0.2, 0.5, 0.9):
        right = np.arange(20_000) < p * 20_000
        assert auarc(right, right.astype(float)) == pytest.approx(p - p * math.log(p), abs=1e-3)
    assert auarc(np.ones(7, bool), np.zeros(7)) == 1.0


def test_knowing_nothing_scores_the_accuracy_whatever_the_order_of_the_answers() -> None:
    right = np.array([True, True, False, False, False])
    assert auarc(right, np.full(5, 0.3)) == pytest.approx(0.4)
    assert auarc(right[::-1].copy(), np.full(5, 0.3)) == pytest.approx(0.4)


def test_calibration_error_is_zero_for_the_calibrated_and_the_gap_for_the_boastful() -> None:
    right = np.arange(100) % 4 != 0  # three of four
    assert ece(right, np.full(100, 0.75)) == pytest.approx(0.0, abs=1e-12)
    assert ece(right, np.full(100, 1.0)) == pytest.approx(0.25)
    assert ece(np.zeros(10, bool), np.full(10, 1.0)) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 1.0)), min_size=1, max_size=50))
def test_both_stay_between_nought_and_one(answers: list[tuple[bool, float]]) -> None:
    right, sure = np.array([a for a, _ in answers]), np.array([c for _, c in answers])
    assert 0.0 <= auarc(right, sure) <= 1.0
    assert 0.0 <= ece(right, sure) <= 1.0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        auarc(np.array([], bool), np.array([]))
    with pytest.raises(ValueError, match="finite"):
        auarc(np.array([True]), np.array([math.nan]))
    with pytest.raises(ValueError, match="probability"):
        ece(np.array([True]), np.array([1.5]))
