"""A short campaign of `make kills`: a whole gateway killed at named places and any instant; nothing lost, nothing half."""

from pathlib import Path

import pytest

from tests.faults.killing import PLACES, campaign

KILLS = 14


@pytest.mark.slow
@pytest.mark.ruling("R07")
def test_a_gateway_killed_anywhere_loses_nothing_and_shows_nothing_half(tmp_path: Path) -> None:
    done = campaign(tmp_path, KILLS, first_seed=1)
    print(done.summary())
    assert done.findings == []
    assert done.kills.total() == KILLS
    assert len(done.kills) == 3, "each kind of kill happened"
    assert done.kept > KILLS // 2, "the victims got far enough for this to mean something"


@pytest.mark.slow
@pytest.mark.ruling("R07")
def test_killed_while_canaries_are_asked_nothing_has_a_name_that_was_not_asked(tmp_path: Path) -> None:
    done = campaign(tmp_path, KILLS - 4, first_seed=100, canaries=True)
    print(done.summary(), done.rungs)
    assert done.findings == []
    assert done.kept > 0, "the victims got far enough for this to mean something"
    assert set(done.rungs) == {0, 1, 2, 3}, "the victims were killed while every rung was asked"


def test_every_place_in_the_store_may_be_the_last() -> None:
    assert len(PLACES) >= 10
