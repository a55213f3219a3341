"""Tables in terminals of any width: every word is there, whole, and no line is wider than the terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.observe.fitted_table import FittedTable

COLUMNS = ("name", "a number", "text")


def shown(table: FittedTable, width: int) -> list[str]:
    written = io.StringIO()
    Console(width=width, file=written).print(table)
    return [line.rstrip() for line in written.getvalue().splitlines() if line.strip()]


def test_where_it_fits_it_is_a_table() -> None:
    table = FittedTable(COLUMNS, [("x" * 30, "1,234", "two words"), ("y", "5", "z")], {"a number"}, {"text"})
    heading, _, first, second = shown(table, 80)
    assert heading.split() == ["name", "a", "number", "text"]
    assert (first.split(), second.split()) == (["x" * 30, "1,234", "two", "words"], ["y", "5", "z"])
    assert first.index("4") == second.index("5")


def test_where_it_does_not_each_row_has_lines_of_its_own() -> None:
    table = FittedTable(COLUMNS, [("x" * 30, "1,234", "two words"), ("y", "5", "")], {"a number"}, {"text"})
    assert shown(table, 40) == ["x" * 30, "  a number: 1,234; text: two words", "y", "  a number: 5"]


def test_a_text_that_may_wrap_does_so_between_words() -> None:
    table = FittedTable(COLUMNS, [("x", "1", "word " * 20)], wrapping={"text"})
    lines = shown(table, 40)
    assert len(lines) > 3
    assert sum(line.count("word") for line in lines) == 20


def test_brackets_are_no_markup() -> None:
    assert "[red]x[/]" in "".join(shown(FittedTable(("a", "b"), [("[red]x[/]", "[/y]")]), 40))


@pytest.mark.parametrize("width", [20, 80, 400])
@given(rows=st.lists(st.tuples(*[st.from_regex(r"[a-z0-9.@-]{1,18}", fullmatch=True)] * 4), min_size=1, max_size=5))
def test_nothing_is_cut(width: int, rows: list[tuple[str, ...]]) -> None:
    lines = shown(FittedTable(("a", "b", "c", "d"), rows), width)
    assert max(map(len, lines)) <= width
    said = "".join(lines).replace(" ", "")
    assert all(cell in said for row in rows for cell in row)
