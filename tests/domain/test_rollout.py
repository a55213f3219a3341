"""Roll-outs: weights are read strictly, conversations stay where they are, and a change moves as few as it can."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BAD_WEIGHTS, Refused
from app.domain.rollout import MAX_VERSIONS, SLOTS, Rollout, Wanted, all_to, slot_of, stable_version

WEIGHTS = st.lists(st.integers(0, SLOTS), min_size=0, max_size=MAX_VERSIONS - 1).map(
    lambda cuts: {
        number: high - low
        for number, (low, high) in enumerate(
            zip([0, *sorted(cuts)], [*sorted(cuts), SLOTS], strict=True),
            1,
        )
        if high > low
    }
)


def moved(one: Rollout, other: Rollout) -> int:
    return sum(mine != theirs for mine, theirs in zip(one.slots, other.slots, strict=True))


def test_weights_and_a_shadow() -> None:
    assert Wanted.parse({"3": 95, "4": 5}) == Wanted({3: 95, 4: 5})
    assert Wanted.parse({"3": 100, "shadow": 4}) == Wanted({3: 100}, shadow=4)
    assert Wanted.parse({"4": 0, "3": 100, "shadow": None, "guard": True}) == Wanted({3: 100}, guard=True)
    assert Wanted.parse({"3": 100, "shadow": 4}).versions == {3, 4}


@pytest.mark.hostile("R14")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "add up to 0"),
        ({"3": 95}, "add up to 95"),
        ({"3": 95, "4": 6}, "add up to 101"),
        ({"3": 150, "4": -50}, "'3' must be a whole number"),
        ({"3": 99.5, "4": 0.5}, "'3' must be a whole number"),
        ({"3": "100"}, "'3' must be a whole number"),
        ({"3": True, "4": 99}, "'3' must be a whole number"),
        ({"3": None, "4": 100}, "'3' must be a whole number"),
        ({"3": 50, "03": 50}, "'03' is not the number"),
        ({"three": 100}, "'three' is not the number"),
        ({"0": 100}, "'0' is not the number"),
        ({"-1": 100}, "'-1' is not the number"),
        ({"٣": 100}, "is not the number"),  # a digit, of another script
        ({"3\n": 100}, "is not the number"),
        ({"1" * 5000: 100}, "is not the number"),
        ({"weights": {"3": 100}}, "'weights' is not the number"),
        ({"3": 100, "shadow": "4"}, "`shadow` must be"),
        ({"3": 100, "shadow": True}, "`shadow` must be"),
        ({"3": 100, "shadow": 0}, "`shadow` must be"),
        ({"3": 100, "shadow": 10**9}, "`shadow` must be"),
        ({"3": 100, "guard": 1}, "`guard` must be"),
        ({str(number): 12 + 4 * (number == 1) for number in range(1, 9)} | {"shadow": 9}, "9 versions, the most"),
    ],
)
def test_bad_weights_are_refused_with_a_sentence(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        Wanted.parse(fields)
    assert refused.value.code is BAD_WEIGHTS
    assert says in refused.value.message
    assert len(refused.value.message) < 200
    assert refused.value.hint.endswith(".")


@given(WEIGHTS)
def test_each_version_gets_its_share_of_the_slots(weights: dict[int, int]) -> None:
    rollout = all_to(1).to(Wanted(weights), "style")
    assert rollout.weights == weights
    assert len(rollout.slots) == SLOTS


@given(WEIGHTS, WEIGHTS)
def test_a_change_of_weights_moves_the_fewest_slots(before: dict[int, int], after: dict[int, int]) -> None:
    first = all_to(1).to(Wanted(before), "style")
    second = first.to(Wanted(after), "style")
    fewest = sum(max(0, weight - after.get(number, 0)) for number, weight in before.items())
    assert moved(first, second) == fewest
    assert second.weights == after


def test_the_same_weights_move_nothing() -> None:
    rollout = all_to(3).to(Wanted({3: 60, 4: 30, 5: 10}), "style")
    assert rollout.to(Wanted({3: 60, 4: 30, 5: 10}, shadow=2), "style").slots == rollout.slots


def test_who_has_moved_stays_moved_while_the_share_grows() -> None:
    rollout = all_to(3)
    on_new: set[int] = set()
    for weight in (5, 20, 50, 100):
        rollout = rollout.to(Wanted({number: w for number, w in {3: 100 - weight, 4: weight}.items() if w}), "style")
        now = {slot for slot, version in enumerate(rollout.slots) if version == 4}
        assert on_new < now
        on_new = now


def test_not_every_roll_out_begins_with_the_same_users() -> None:
    first = {
        all_to(1).to(Wanted({1: 95, new: 5}), name).slots.index(new) for name in ("a", "b") for new in range(2, 12)
    }
    assert len(first) > 5


def test_conversations_are_spread_evenly_and_stay() -> None:
    rollout = all_to(3).to(Wanted({3: 95, 4: 5}), "style")
    asked = [f"user {number}".encode() for number in range(20_000)]
    given_to = [rollout.slots[slot_of("style", one)] for one in asked]
    assert 0.04 < Counter(given_to)[4] / len(asked) < 0.06
    assert given_to == [rollout.slots[slot_of("style", one)] for one in asked]
    assert [slot_of("style", one) for one in asked] != [slot_of("other", one) for one in asked]


def test_it_is_written_and_read() -> None:
    rollout = all_to(3).to(Wanted({3: 95, 4: 5}, shadow=7, guard=True), "style")
    assert Rollout.read(rollout.write()) == rollout
    assert rollout.versions == {3, 4, 7}
    assert rollout.others(3) == (4, 7)


@pytest.mark.parametrize(
    ("active", "weights", "begun", "stable"),
    [
        (3, {3: 95, 4: 5}, False, 3),
        (4, {3: 95, 4: 5}, False, 3),  # 4 was uploaded, and is taken back to a few per cent
        (4, {3: 50, 4: 50}, False, 4),
        (9, {3: 50, 4: 50}, False, 3),
        (3, {3: 10, 4: 90}, True, 3),  # the share of the new one has grown: an abort still goes back
        (3, {4: 90, 5: 10}, True, 4),
        (3, {4: 100}, True, 4),
    ],
)
def test_the_stable_version(active: int, weights: dict[int, int], begun: bool, stable: int) -> None:
    assert stable_version(active, weights, begun=begun) == stable
