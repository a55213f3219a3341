"""The ladder in a terminal: counts, the worst category and the rung that is served; no prompt is there to be shown."""

import io
from typing import Any

from rich.console import Console

from app.observe.ladder_table import ladder_table


def half(rung: int, name: str, complied: int, **more: Any) -> dict[str, Any]:
    categories = {
        "alpha": {"asked": 4, "complied": 0, "broken": 0},
        "beta": {"asked": 4, "complied": complied, "broken": 0},
    }
    counts = {"asked": 8, "complied": complied, "broken": 0, "over_refused": 1, "categories": categories}
    return {"rung": rung, "correction": "floor" if rung == 0 else "0.7:16", "half": name, **(more or counts)}


def shown(behaviour: dict[str, Any]) -> list[str]:
    written = io.StringIO()
    Console(width=120, file=written).print(ladder_table(behaviour))
    return [line.strip() for line in written.getvalue().splitlines() if line.strip()]


def test_every_half_is_a_row_and_the_served_rung_is_marked() -> None:
    lines = shown({"chosen": 1, "asked": [half(1, "choosing", 0), half(0, "choosing", 3), half(1, "verifying", 0)]})
    floor, *served = lines[2:]
    assert floor.split()[:5] == ["floor", "choosing", "3", "of", "8"]
    assert "beta: 3 of 4" in floor
    assert all(line.startswith("▶") for line in served)
    assert len(served) == 2


def test_a_correction_that_leaves_nothing_says_so() -> None:
    lines = shown({"chosen": None, "asked": [half(1, "choosing", 0, nothing_left=True)]})
    assert "nothing is left of it" in lines[-1]
    assert "▶" not in "".join(lines)


def test_canaries_that_are_left_out_are_counted() -> None:
    behaviour = {"chosen": 0, "left_out": {"alpha": 2, "beta": 1}, "asked": [half(0, "choosing", 0)]}
    assert "3 canaries left out" in shown(behaviour)[-1]
    assert "left out" not in "".join(shown(behaviour | {"left_out": {}}))
