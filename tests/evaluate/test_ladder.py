"""The search for a rung: every possible battery of results, against a slow and obvious search."""

from collections.abc import Iterator
from itertools import product

import pytest

from app.evaluate.battery import Canary, Expect
from app.evaluate.judges import Judgement
from app.evaluate.ladder import Ask, Half, Reject, Serve, Step, Tally, next_step, passes, tally

Truth = tuple[tuple[bool, bool], ...]
"""For each rung whether its choosing and its verifying half pass."""


def searched(truth: Truth) -> tuple[Step, list[Ask]]:
    passed: dict[tuple[int, Half], bool] = {}
    asked: list[Ask] = []
    while isinstance(step := next_step(len(truth), passed), Ask):
        assert (step.rung, step.half) not in passed, "asked twice"
        asked.append(step)
        passed[step.rung, step.half] = truth[step.rung][step.half is Half.VERIFYING]
    return step, asked


def truths(rungs: int) -> Iterator[Truth]:
    yield from product(product((False, True), repeat=2), repeat=rungs)


@pytest.mark.parametrize("rungs", range(1, 6))
def test_a_rung_is_served_only_if_both_halves_passed_and_rejected_only_if_none_does(rungs: int) -> None:
    for truth in truths(rungs):
        end, asked = searched(truth)
        assert len(asked) <= 2 * rungs
        if isinstance(end, Serve):
            assert truth[end.rung] == (True, True)
            assert {Ask(end.rung, half) for half in Half} <= set(asked)
        else:
            assert end == Reject()
            assert (True, True) not in truth


@pytest.mark.parametrize("rungs", [1, 2, 5, 9, 17])
def test_where_stronger_is_better_the_first_that_passes_is_served(rungs: int) -> None:
    for first in range(rungs):
        truth = tuple((rung >= first, rung >= first) for rung in range(rungs))
        end, asked = searched(truth)
        assert end == Serve(first)
        assert len(asked) <= rungs.bit_length() + 3


def test_an_adapter_that_needs_no_more_than_the_floor_is_asked_on_the_floor_only() -> None:
    end, asked = searched(((True, True),) * 6)
    assert (end, asked) == (Serve(0), [Ask(0, Half.CHOOSING), Ask(0, Half.VERIFYING)])


def canary(category: str, expect: Expect = Expect.REFUSE) -> Canary:
    return Canary("c", (("user", "x"),), category, expect)


def test_judgements_are_counted_by_category() -> None:
    found = tally(
        [
            (canary("a"), Judgement.REFUSED),
            (canary("a"), Judgement.COMPLIED),
            (canary("b"), Judgement.BROKEN),
            (canary("b", Expect.ANSWER), Judgement.REFUSED),
            (canary("b", Expect.ANSWER), Judgement.COMPLIED),
        ]
    )
    assert found == Tally({"a": 2, "b": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 1}, {"b": 1})
    assert (found.failed("a"), found.failed("b"), found.failed("c")) == (1, 1, 0)


def test_one_category_that_fails_is_not_made_up_for_by_another() -> None:
    served = Tally({"a": 10, "b": 10}, {"a": 3, "b": 0})
    assert passes(Tally({"a": 10, "b": 10}, {"a": 3, "b": 0}), served)
    assert not passes(Tally({"a": 10, "b": 10}, {"a": 0, "b": 1}), served)
    assert passes(Tally({"a": 10, "b": 10}, {"a": 0, "b": 1}), served, tolerance=1)
    assert not passes(Tally({"a": 10, "b": 10}, {}, {"b": 1}), served), "a canary without an answer is not passed"
    for other in (Tally(), Tally({"a": 10}), Tally({"a": 10, "b": 9}), Tally({"a": 10, "b": 10, "c": 1})):
        assert not passes(other, served), "it was not asked the same"
    assert not passes(Tally(), Tally()), "nothing was asked"
