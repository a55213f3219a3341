"""Statements made from rows: parameters come from the tuning seeds alone, figures from the others."""

import math
from typing import Any

import pytest

from app.bench.safety.summary import area, evaded, interval, lines


def row(method: str, threshold: str, seed: int, *, mix: float = 0.1, **metrics: float) -> dict[str, Any]:
    fields = {
        "attack_success": 1.0,
        "harm_delivered": 1.0,
        "skill": 0.8,
        "retention": 1.0,
        "pruned_share": 0.0,
        "bytes_saved": 0.0,
    }
    at = {"size": "small", "mix": mix, "targets": "qv", "rank": 8, "seed": seed}
    split = "tune" if seed < 2 else "report"
    return {"method": method, "threshold": threshold, **at, "split": split, **fields, **metrics}


def rows() -> list[dict[str, Any]]:
    """Threshold 1 is best on the tuning seeds (0, 1), threshold 2 on the reporting seeds (2, 3, 4)."""
    found = []
    for seed in range(5):
        good, bad = ("1", "2") if seed < 2 else ("2", "1")
        for mix in (0.0, 0.1):
            found += [row("none", "0", seed, mix=mix)]
            found += [row("cut", good, seed, mix=mix, attack_success=0.0, skill=0.72 + 0.02 * seed)]
            found += [row("cut", bad, seed, mix=mix, attack_success=0.9, skill=0.8)]
    return found


def test_the_parameter_is_chosen_on_tuning_seeds_and_reported_on_the_others() -> None:
    line = {line.method: line for line in lines(rows())}["cut"]
    assert line.threshold == "1"
    assert line.attack.mean == pytest.approx(0.9)  # unflattering, and reported
    assert line.kept.mean == pytest.approx(1.0)


def test_turning_the_splits_round_turns_the_choice_round() -> None:
    swapped = [{**r, "split": "report" if r["split"] == "tune" else "tune"} for r in rows()]
    line = {line.method: line for line in lines(swapped)}["cut"]
    assert line.threshold == "2"
    assert line.attack.mean == pytest.approx(0.9)


def test_another_size_takes_the_parameters_chosen_on_the_small_models() -> None:
    medium = [{**r, "size": "medium", "split": "report"} for r in rows() if r["split"] == "report"]
    line = {line.method: line for line in lines(medium, rows())}["cut"]
    assert line.threshold == "1"
    assert line.attack.mean == pytest.approx(0.9)


def test_attackers_are_a_table_of_their_own() -> None:
    theirs = [row("attacker: none", "0", seed, skill=0.1 * seed) for seed in (2, 3, 4)]
    assert lines([*rows(), *theirs]) == lines(rows())
    (found,) = evaded([*rows(), *theirs])
    assert found.method == "none"
    assert found.skill.mean == pytest.approx(0.3)


def test_kept_skill_is_relative_to_the_adapter_before_and_never_above_it() -> None:
    line = {line.method: line for line in lines(rows())}["none"]
    assert (line.kept.mean, line.attack.mean, line.benign_kept.mean) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1.0, 1.0)], 0.0),  # nothing but the attack as it was
        ([(1.0, 1.0), (0.0, 1.0)], 1.0),  # the best there can be
        ([(1.0, 1.0), (0.5, 0.5)], 0.25),
        ([(1.0, 1.0), (0.25, 0.8), (0.5, 0.2)], 0.6),  # a worse point adds nothing
        ([(0.4, 1.0)], 0.6),
    ],
)
def test_area_under_the_trade_off(points: list[tuple[float, float]], expected: float) -> None:
    assert area(points) == pytest.approx(expected)


def test_an_interval_of_three_seeds_is_students() -> None:
    found = interval([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2)
    assert found.half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert str(interval([0.5])) == "0.50"
    with pytest.raises(ValueError, match="no seed"):
        interval([])
