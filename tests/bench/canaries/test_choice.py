"""The setting is chosen on the tuning seeds alone, by the sum of what it misses."""

from dataclasses import replace

import pytest

from app.bench.canaries.choice import AIMS, SETTINGS, Aim, missed, over_seeds, ranked
from app.bench.canaries.ladder import WITHOUT_TOPIC, Setting, outcomes_of
from app.bench.canaries.measuring import Row
from app.bench.canaries.plan import ALIGNED, CORE, ENTRIES, FLOORS, LADDERS, RUNGS, UPLOADED, full
from app.bench.canaries.questions import SIZES
from app.bench.safety.plan import Split
from app.domain.rungs import Rung
from app.server.settings.canaries import CanarySettings

NONE = "0" * SIZES[-1]


def rows(seed: int, split: Split, harmless_floor: str, group: str = "mixed") -> list[Row]:
    """A mixed adapter that passes every canary and harms unless it is corrected at one floor."""
    every = [UPLOADED, *(f"floor {one}" for one in FLOORS), *(f"rung {one}" for one in RUNGS)]
    found = [
        Row(group, group, seed, split, at, NONE, targeted=0.0 if at == harmless_floor else 0.5, skill=0.8)
        for at in every
    ]
    return [Row(ALIGNED, ALIGNED, seed, split, UPLOADED, NONE), *found]


def test_the_reporting_seeds_have_no_say() -> None:
    tune, report = rows(0, "tune", "floor 0.2:4"), rows(8, "report", "floor 0.7:1")
    by, best = ranked([*tune, *report])[0]
    assert (by, best) == (0.0, Setting(Rung(0.2, 4), SIZES[0], "default"))
    assert missed(list(outcomes_of(report, best))) == pytest.approx(0.5 - 0.03)


def test_smaller_batteries_and_todays_rungs_win_a_tie() -> None:
    tied = [setting for by, setting in ranked(rows(0, "tune", "floor 0.2:4")) if by == 0.0]
    assert [(one.size, one.ladder) for one in tied] == [(size, ladder) for size in SIZES for ladder in LADDERS]


def test_an_aim_is_missed_on_its_own_side_only() -> None:
    most, least = Aim("mixed", "attack", 0.03), Aim("mixed", "kept", 0.88, least=True)
    assert [most.missed_by(0.02), least.missed_by(0.9)] == [0.0, 0.0]
    assert [most.missed_by(0.05), least.missed_by(0.8)] == pytest.approx([0.02, 0.08])


def test_a_rejected_benign_adapter_costs_more_than_its_skill() -> None:
    benign = [replace(row, complied="1" * SIZES[-1]) if row.group != ALIGNED else row
              for row in rows(0, "tune", UPLOADED, "benign")]  # fmt: skip
    outcomes = list(outcomes_of(benign, SETTINGS[0]))
    assert missed(outcomes) == pytest.approx(0.95 + 1.0)
    found = over_seeds(outcomes, "benign", "rejected")
    assert found is not None
    assert found.mean == 1.0
    assert {aim.group for aim in AIMS} >= {"mixed", "benign"}


def test_todays_rungs_are_the_gateways() -> None:
    assert ",".join(map(str, LADDERS["default"])) == CanarySettings.model_fields["rungs"].default


def test_an_early_end_leaves_seeds_of_both_kinds_and_everything_is_done_once() -> None:
    steps = list(full().steps)
    assert [seed for entry, seed, _ in steps if entry is None] == [0, 8, 1, 9, 2, 10, 11, 12]
    assert len(set(steps)) == len(steps) == 3 * (1 + CORE) + 5 * (1 + len(ENTRIES))
    assert {split for entry, _, split in steps if entry in ENTRIES[CORE:]} == {"report"}
    groups = {entry.group for entry in ENTRIES[:CORE]}
    assert all(aim.group.removesuffix(WITHOUT_TOPIC) in groups for aim in AIMS)
