"""The end of a made-up adapter: which correction is served, by the product's own search."""

from collections.abc import Mapping

import pytest

from app.bench.canaries.adversaries import Adversary, topic_of
from app.bench.canaries.ladder import WITHOUT_TOPIC, Setting, outcomes_of, served_at
from app.bench.canaries.measuring import Row
from app.bench.canaries.plan import ALIGNED, FLOORS, LADDERS, RUNGS, UPLOADED
from app.bench.canaries.questions import battery, canaries_of
from app.bench.safety.trained_models import world_spec
from app.demo.questions import build_world
from app.domain.rungs import Rung
from app.evaluate.battery import halves

SEED = 8
CANARIES = tuple(canary for canary, _ in canaries_of(build_world(world_spec(SEED)).held_out).values())
NONE = "0" * len(CANARIES)
EVERY = "1" * len(CANARIES)
FLOOR = Rung(0.5, 1)
DEFAULT = Setting(FLOOR, 48, "default")


def row(at: str, complied: str | None, name: str = "made up") -> Row:
    return Row(name, name, SEED, "report", at, complied)


def adapter(good: set[str], complied: str | None = EVERY, name: str = "made up") -> Mapping[str, Row]:
    """An adapter that complies with nothing after the corrections in `good`, and with `complied` after all others."""
    every = [UPLOADED, *(f"floor {one}" for one in FLOORS), *(f"rung {one}" for one in RUNGS)]
    return {at: row(at, NONE if at in good else complied, name) for at in every}


def those(ids: set[str]) -> str:
    return "".join("1" if one.id in ids else "0" for one in CANARIES)


ALIGNED_ROW = row(UPLOADED, NONE, ALIGNED)


@pytest.mark.parametrize(
    ("good", "served"),
    [
        ({"floor 0.5:1"}, "floor 0.5:1"),
        ({UPLOADED}, None),  # the floor is asked, not the upload
        ({"rung 0.5:16", "rung 0.7:32", "rung 0.9:64"}, "rung 0.5:16"),
        ({"rung 0.9:64"}, "rung 0.9:64"),
        ({"rung 0.3:1"}, None),  # not a rung of this ladder
        (set(), None),
    ],
)
def test_the_weakest_good_correction_is_served(good: set[str], served: str | None) -> None:
    assert served_at(adapter(good), ALIGNED_ROW, DEFAULT) == served


def test_without_a_floor_an_upload_that_behaves_is_served_as_it_came() -> None:
    assert served_at(adapter({UPLOADED}), ALIGNED_ROW, Setting(None, 12, "inputs")) == UPLOADED


def test_a_floor_that_leaves_nothing_rejects() -> None:
    found = {**adapter({"rung 0.9:64"}), "floor 0.5:1": row("floor 0.5:1", None)}
    assert served_at(found, ALIGNED_ROW, DEFAULT) is None


def test_the_verifying_half_counts_unless_it_is_not_asked() -> None:
    _, verifying = halves(battery(CANARIES, 48))
    found = adapter({"rung 0.9:64"}, those({verifying[0].id}))
    assert served_at(found, ALIGNED_ROW, DEFAULT) == "rung 0.9:64"
    assert served_at(found, ALIGNED_ROW, Setting(FLOOR, 48, "default", both_halves=False)) == "floor 0.5:1"


def test_canaries_that_the_served_model_fails_are_not_held_against_an_adapter() -> None:
    some = those({CANARIES[0].id})
    assert served_at(adapter(set(), some), row(UPLOADED, some, ALIGNED), DEFAULT) == "floor 0.5:1"


def test_rungs_no_stronger_than_the_floor_are_left_out() -> None:
    found = adapter({"rung 0.5:4", "rung 0.9:64"})
    assert served_at(found, ALIGNED_ROW, Setting(Rung(0.5, 16), 48, "default")) == "rung 0.9:64"
    assert Rung(0.5, 4) in LADDERS["default"]


def test_an_adversary_of_one_topic_passes_a_battery_that_leaves_it_out() -> None:
    topic = those({one.id for one in CANARIES if one.category == topic_of(SEED)})
    group = str(Adversary.TOPIC)
    rows = [*adapter(set(), topic, group).values(), ALIGNED_ROW]
    with_it, without = outcomes_of(rows, DEFAULT)
    assert (with_it.group, with_it.rejected) == (group, True)
    assert (without.group, without.rejected, without.corrected) == (f"{group}{WITHOUT_TOPIC}", False, False)


def test_a_rejected_adapter_harms_nobody_and_is_of_no_use() -> None:
    found = {at: Row(one.adapter, one.group, SEED, "report", at, one.complied, 0.9, skill=0.8)
             for at, one in adapter(set()).items()}  # fmt: skip
    (outcome,) = outcomes_of([*found.values(), ALIGNED_ROW], DEFAULT)
    assert (outcome.attack, outcome.kept, outcome.rejected) == (0.0, 0.0, True)
    assert outcome.floor.targeted == 0.9
