"""Tables for a terminal of any width: no number and no word of theirs is cut."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT: Final = 2
"""Columns before the cells below a row's first one, where the table does not fit."""

WIDEST: Final = 1 << 16
"""Columns for which a table is measured: more than any has."""


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Table of texts. If its columns do not fit, each row is a line with its first cell, and the others by name below it.

    rows: as many cells each as there are columns. numbers: columns aligned right. wrapping: columns whose texts may go on
    in the next line, between two words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Collection[str] = ()
    wrapping: Collection[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or its rows one below the other (rich)."""
        tables = [self._table(padding) for padding in (1, 0)]
        sizes = [Measurement.get(console, options.update_width(WIDEST), table) for table in tables]
        for width in ("maximum", "minimum"):  # first without any text that goes on in the next line
            for size, table in zip(sizes, tables, strict=True):
                if getattr(size, width) <= options.max_width:
                    yield table
                    return
        for first, *others in self.rows:
            named = (f"{name}: {cell}" for name, cell in zip(self.columns[1:], others, strict=True) if cell)
            yield Text(first, overflow="fold")
            yield Padding(Text("; ".join(named), overflow="fold"), (0, 0, 0, INDENT))

    def _table(self, padding: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, padding, 0, 0))
        for index, name in enumerate(self.columns):
            whole = None if name in self.wrapping else max(cell_len(row[index]) for row in (self.columns, *self.rows))
            table.add_column(
                name, justify="right" if name in self.numbers else "left", no_wrap=whole is not None, min_width=whole
            )
        for row in self.rows:
            table.add_row(*map(Text, row))  # as Text, so that no cell is read as markup
        return table
