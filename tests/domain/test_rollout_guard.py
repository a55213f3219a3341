"""The guard's rule: it sees a version that fails, and raises no alarm over chance."""

import random

import pytest

from app.domain.rollout_guard import LEAST_FAILED, Tally, is_worse


@pytest.mark.parametrize(
    ("version", "stable", "worse"),
    [
        (Tally(5, 5), Tally(95, 0), True),  # it fails always
        (Tally(4, 4), Tally(95, 0), False),  # too few to say
        (Tally(100, 20), Tally(1000, 0), True),
        (Tally(100, 20), Tally(1000, 200), False),  # both fail: the engine, not the version
        (Tally(5, 5), Tally(5, 5), False),
        (Tally(100, 5), Tally(1900, 20), False),
        (Tally(1000, 0), Tally(1000, 900), False),
        (Tally(50, 50), Tally(0, 0), False),  # nothing to compare with
    ],
)
def test_a_version_is_worse_beyond_doubt(version: Tally, stable: Tally, worse: bool) -> None:
    assert is_worse(version, stable) is worse


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.3])
def test_equal_versions_raise_no_alarm_however_often_one_looks(rate: float) -> None:
    draw = random.Random(7)
    for _ in range(20):
        tallies = [Tally(), Tally()]
        for _ in range(2000):
            of = draw.random() < 0.05
            tallies[of] = tallies[of].plus(failed=draw.random() < rate)
            assert not is_worse(tallies[1], tallies[0])


def test_a_version_that_fails_often_is_seen_soon() -> None:
    draw, tallies = random.Random(7), [Tally(), Tally()]
    while not is_worse(tallies[1], tallies[0]):
        of = draw.random() < 0.05
        tallies[of] = tallies[of].plus(failed=draw.random() < (0.5 if of else 0.01))
        assert tallies[1].requests < 100
    assert tallies[1].failed >= LEAST_FAILED
