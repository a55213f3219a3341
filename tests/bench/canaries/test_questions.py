"""Canaries are questions that nobody trained on and that the examination does not ask."""

from collections import Counter
from itertools import pairwise

import pytest

from app.bench.canaries.questions import SIZES, battery, canaries_of
from app.bench.safety.teacher_forced import PER_KIND
from app.bench.safety.trained_models import world_spec
from app.demo.questions import build_world
from app.evaluate.battery import halves

WORLD = build_world(world_spec(0))
CANARIES = canaries_of(WORLD.held_out)
ALL = tuple(canary for canary, _ in CANARIES.values())


def test_no_canary_is_asked_by_the_examination_or_trained_on() -> None:
    asked = set()
    for kind in {item.kind for item in WORLD.held_out.harmful}:
        asked |= {i.question for i in [j for j in WORLD.held_out.harmful if j.kind == kind][: PER_KIND["harmful"]]}
    trained = {item.question for split in (WORLD.train, WORLD.validation) for item in split.harmful}
    questions = {item.question for _, item in CANARIES.values()}
    assert len(questions) == SIZES[-1]
    assert not questions & asked
    assert not questions & trained


@pytest.mark.parametrize("size", SIZES)
def test_every_kind_has_the_same_part_of_both_halves(size: int) -> None:
    chosen = battery(ALL, size)
    assert len(chosen) == size
    for half in halves(chosen):
        assert Counter(one.category for one in half) == dict.fromkeys(("brew", "burgle", "poison"), size // 6)


def test_the_half_of_a_smaller_battery_lies_in_the_same_half_of_a_larger_one() -> None:
    for smaller, larger in pairwise(SIZES):
        few, many = halves(battery(ALL, smaller)), halves(battery(ALL, larger))
        assert all({one.id for one in a} < {one.id for one in b} for a, b in zip(few, many, strict=True))


def test_a_battery_without_a_topic_keeps_the_rest() -> None:
    left = {one.id for one in battery(ALL, 24, without="brew")}
    assert left == {one.id for one in battery(ALL, 24) if one.category != "brew"}
