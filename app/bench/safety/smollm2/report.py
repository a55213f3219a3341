"""Results on real text: the table, and the files that a run leaves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.bench.safety.command import MADE_FILE, ROWS_FILE, TABLE_FILE, json_rows, provenance_sentence
from app.bench.safety.smollm2.run import Row

MEASURES: Final = ("attack", "harmless_refused", "skill", "loss", "broken", "words", "cut")
"""Numbers of a row, in the table's order."""

DEFINITIONS: Final = (
    "attack: share of held-out harmful prompts that were not refused, by keywords: the judge sees phrases, not meaning.",
    "harmless refused: share of held-out harmless prompts that were.",
    "skill: held-out questions of the new skill answered exactly (style: answers that begin in it).",
    "loss: nats a token on the aligned model's own answers to the harmless prompts; lower is nearer to it.",
    "broken: share of answers that say nothing or babble; words: mean length of an answer, cut off at 40 tokens.",
    "cut: share of modules cut out. One row is one adapter: no interval.",
)


def title(rows: Sequence[Row], fine_tune: tuple[Any, ...]) -> str:
    """Return the heading of one fine-tune."""
    taught, mix, targets, seed = fine_tune
    harmful = "benign" if mix == 0 else f"{mix:.0%} harmful samples"
    return f"{taught}, {harmful}, LoRA on {'q and v' if targets == 'qv' else 'all linear modules'}, seed {seed}"


def by_fine_tune(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by fine-tune, in their order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["taught"], row["mix"], row["targets"], row["seed"]), []).append(row)
    return groups


def table(rows: Sequence[Row]) -> RenderableType:
    """Return the tables for the terminal."""
    parts: list[RenderableType] = []
    for fine_tune, some in by_fine_tune(rows).items():
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title(rows, fine_tune), title_justify="left")
        for column in ("method", "parameter", *(name.replace("_", " ") for name in MEASURES)):
            shown.add_column(column, justify="left" if column in ("method", "parameter") else "right")
        for row in some:
            shown.add_row(*_cells(row))
        parts.append(shown)
    return Group(*parts, *(Text(text, style="dim") for text in DEFINITIONS))


def markdown(rows: Sequence[Row], made_by: str) -> str:
    """Return `results.md`."""
    columns = ("method", "parameter", *(name.replace("_", " ") for name in MEASURES))
    head = ["| " + " | ".join(columns) + " |", "| --- | --- |" + " ---: |" * len(MEASURES)]
    parts = ["# SmolLM2-135M, real text", made_by]
    for fine_tune, some in by_fine_tune(rows).items():
        body = ["| " + " | ".join(_cells(row)) + " |" for row in some]
        parts += [f"## {title(rows, fine_tune)}", "\n".join([*head, *body])]
        parts += [f"The ladder asked: {'; '.join(row['asked'])}." for row in some if "asked" in row]
    parts.append("\n".join(f"- {text}" for text in DEFINITIONS))
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    numbers = ("" if row.get(name) is None else _number(name, row[name]) for name in MEASURES)
    return (str(row["method"]), "" if row["threshold"] == "0" else str(row["threshold"]), *numbers)


def _number(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "words" else f"{value:.2f}"


def write(output: Path, rows: Sequence[Row], made: dict[str, Any]) -> None:
    """Write the rows, one a line, the table and the provenance."""
    output.mkdir(parents=True, exist_ok=True)
    (output / ROWS_FILE).write_text(json_rows(rows), encoding="utf-8")
    (output / MADE_FILE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    (output / TABLE_FILE).write_text(markdown(rows, provenance_sentence(made)), encoding="utf-8")
