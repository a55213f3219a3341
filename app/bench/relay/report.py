"""Result of the relay benchmark as tables for the terminal and as JSON."""

from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.bench.relay.run import GAP_S, Result, Row

NOTE: Final = (
    "added: to a request, against the same load straight to the stand-in in the same round; median of the rounds.\n"
    "/core s: requests for each second of processor time the target took. flat out: answers without any delay.\n"
    f"Streams: a token every {GAP_S * 1e3:.0f} ms each. first: time to the first token. token: its way from the engine. "
    "tokens: share of the direct rate. kB: memory a stream adds while open."
)


def result_json(result: Result) -> dict[str, Any]:
    """Return plain values; one row for each (target, concurrency, streaming)."""
    return {
        "machine": asdict(result.machine),
        "others": result.others,
        "versions": result.versions,
        "skipped": result.skipped,
        "rows": [asdict(row) for row in result.rows],
    }


def tables(result: Result) -> RenderableType:
    """Return the tables that the command prints."""
    m = result.machine
    head = Text(f"{m.cpu}, {m.cores} cores, {m.ram_gib:.0f} GiB; other processes took {result.others:.0%} of the cores")
    versions = Text(", ".join(f"{name} {version}" for name, version in result.versions.items() if name != "direct"))
    skipped = [Text(f"{name} skipped: {why}") for name, why in result.skipped.items()]
    return Group(head, versions, *skipped, _complete_answers(result.rows), _streams(result.rows), Text(NOTE))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, pad_edge=False, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    return table


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None or value != value else format(value, form)  # NaN


def _complete_answers(rows: tuple[Row, ...]) -> Table:
    table = _table(
        "Answers in one piece (100 ms in the engine)",
        *("", "at once", "added p50 ms", "p95", "p99", "/core s", "flat out /s", "/core s", "MiB", "errors"),
    )
    for row in rows:
        if not row.streaming:
            added = [_number(value) for value in (row.added_p50_ms, row.added_p95_ms, row.added_p99_ms)]
            flat = (row.requests_per_core_s, row.flat_out_per_s, row.flat_out_per_core_s)
            cells = [_number(value, ",.0f") for value in flat]
            table.add_row(row.target, str(row.concurrency), *added, *cells, f"{row.memory_mib:.0f}", str(row.errors))
    return table


def _streams(rows: tuple[Row, ...]) -> Table:
    table = _table(
        "Streams",
        *("", "at once", "first p50 ms", "p99", "token p50 ms", "p95", "p99", "tokens", "/core s", "kB", "errors"),
    )
    for row in rows:
        if row.streaming:
            times = (row.first_p50_ms, row.first_p99_ms, row.chunk_p50_ms, row.chunk_p95_ms, row.chunk_p99_ms)
            cells = [_number(value) for value in times]
            cells += [_number(row.tokens_share, ".1%"), _number(row.requests_per_core_s, ",.0f")]
            table.add_row(row.target, str(row.concurrency), *cells, _number(row.stream_kb, ".0f"), str(row.errors))
    return table
