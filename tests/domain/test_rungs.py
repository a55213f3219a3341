"""Rungs: pairs read strictly, each stronger than the one before, and the policies they stand for."""

import pytest

from app.domain.policy import EVERY_MODULE, Action, Comparison, Policy
from app.domain.rungs import MAX_RUNGS, Rung, policies, rungs_from


def test_pairs_are_read_in_order() -> None:
    assert rungs_from("0.5:16, 0.7:32,0.7:64") == (Rung(0.5, 16), Rung(0.7, 32), Rung(0.7, 64))
    assert rungs_from("") == ()
    assert str(rungs_from("0.50:1")[0]) == "0.5:1"


@pytest.mark.parametrize(
    "text",
    [
        *("0.5", "0.5:", ":1", "0.5:1.5", "x:1", "0:1", "1:1", "1.5:1", "nan:1", "-0.5:1", "0.5:-1", "0.5:1:2"),
        *("0.7:1,0.5:1", "0.5:4,0.7:2", "0.5:1,0.5:1", ",".join(f"{n / 99}:{n}" for n in range(1, MAX_RUNGS + 2))),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        rungs_from(text)


def test_a_rung_projects_whatever_the_floor_does_and_exactly_as_much_as_it_says() -> None:
    floor = Policy(comparison=Comparison.ALIGNMENT, tau=4.0, max_pruned=3, cap_keeps=True, max_update_ratio=7.0)
    weak, strong = policies(floor, rungs_from("0.5:2,0.9:64"))
    assert (weak.action, weak.comparison, weak.tau) == (Action.PROJECT, Comparison.INPUT, EVERY_MODULE)
    assert (weak.energy, weak.project_outputs) == (0.5, 2)
    assert (strong.energy, strong.project_outputs) == (0.9, 64)
    assert weak.top_k > 100_000, "the energy decides, not a number of inputs"
    assert strong.max_update_ratio == 7.0, "the floor's bound on norms stays"
    assert strong.max_removed_share == 1.0, "canaries decide how much may go"
