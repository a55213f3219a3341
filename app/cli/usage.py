"""`python -m app usage`: what requests used, from a running gateway."""

import sys
from typing import Annotated, Any, Final

import httpx
import typer

from app.cli.client import LOCAL, Json, Key, Url, answer_of, client_of, out, print_json
from app.observe.fitted_table import FittedTable

SUMS: Final = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
PAGE: Final = 10_000
"""Lines asked for at once."""


def usage(
    since: Annotated[str | None, typer.Option(help="First hour, such as 2026-11-01 (UTC); default: a day ago")] = None,
    until: Annotated[str | None, typer.Option(help="First hour that is left out; default: none")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every hour's line as CSV")] = False,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what requests used: the sums by tenant, key, adapter and version; --json and --csv by the hour as well."""
    wanted = {name: value for name, value in (("since", since), ("until", until)) if value is not None}
    with client_of(url, key) as client:
        if as_csv:
            _print_csv(client, wanted)
            return
        lines = _lines(client, wanted)
    if as_json:
        print_json(lines)
    elif lines:
        out.print(_table(lines))
    else:
        out.print("nothing was used in that time")


def _print_csv(client: httpx.Client, wanted: dict[str, str]) -> None:
    with client.stream("GET", "/usage", params={**wanted, "format": "csv"}) as answer:
        if not answer.is_success:
            answer.read()
            answer_of(answer)
        for piece in answer.iter_text():
            sys.stdout.write(piece)


def _lines(client: httpx.Client, wanted: dict[str, str]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    place: dict[str, str] | None = {}
    while place is not None:
        page = answer_of(client.get("/usage", params={**wanted, "limit": str(PAGE), **place}))
        lines += page["usage"]
        place = {"after": page["next"]} if page["next"] else None
    return lines


def _table(lines: list[dict[str, Any]]) -> FittedTable:
    """Return the sums over all hours."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for line in lines:
        who = (line["tenant"], line["key"], line["adapter"] or "–", str(line["version"] or "–"))
        sums[who] = [a + line[name] for a, name in zip(sums.get(who, [0] * len(SUMS)), SUMS, strict=True)]
    sums_shown = tuple(name.replace("_", " ") for name in SUMS)
    rows = [(*names, *(f"{number:,}" for number in numbers)) for names, numbers in sorted(sums.items())]
    return FittedTable(("tenant", "key", "adapter", "version", *sums_shown), rows, sums_shown)
