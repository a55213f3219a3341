"""`python -m app audit`: the audit log of a running gateway: who changed what."""

from datetime import datetime
from typing import Annotated, Any, Final

import httpx
import typer

from app.cli.client import LOCAL, AsJson, Json, Key, Url, answer_of, client_of, fail, out, print_json, time_of
from app.domain.audit_entry import BEGINNING, Act, AuditEntry, first_broken
from app.observe.fitted_table import FittedTable

PAGE: Final = 10_000
"""Entries asked for at once."""

audit = typer.Typer(no_args_is_help=True, help="Show and verify the audit log: who changed what.")


@audit.command("list")
def list_entries(
    after: Annotated[int, typer.Option(min=0, help="Number of the last entry that is left out")] = 0,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the changes, and the refusals by role or tenant, oldest first."""
    with client_of(url, key) as client:
        found = _entries(client, after)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            *(str(one["number"]), time_of(one["at"]), one["key"], one["tenant"], one["action"], one["target"]),
            f"{one['status']} {one['code']}".strip(),
        )
        for one in found
    ]
    out.print(FittedTable(("number", "at", "key", "tenant", "action", "target", "status"), rows, {"number"}))


@audit.command("verify")
def verify(
    after: Annotated[
        str, typer.Option(help="Number and hash of an earlier last entry, 17:3f2a…, as this command printed it")
    ] = f"0:{BEGINNING}",
    url: Url = LOCAL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Verify that no entry was changed or removed, and print the last one's number and hash, to be kept elsewhere.

    Needs the operator's key. Exit status 1 if the chain is broken.
    """
    number, colon, previous = after.partition(":")
    if not colon or not number.isdecimal():
        fail("--after must be a number and a hash, 17:3f2a…", 2)
    with client_of(url, key) as client:
        found = _entries(client, max(0, int(number) - 1))
    entries = [_entry(one) for one in found]
    kept, entries = (entries[:1], entries[1:]) if int(number) else ([], entries)
    if int(number) and [(one.number, one.hash) for one in kept] != [(int(number), previous)]:
        fail(f"entry {number} is missing or was changed")
    broken = first_broken(entries, int(number) + 1, previous)
    if broken is not None:
        fail(f"entry {broken} is missing, was changed, or does not follow from the one before")
    last = f"{entries[-1].number}:{entries[-1].hash}" if entries else after
    if as_json:
        print_json({"entries": len(entries), "last": last})
        return
    out.print(f"{len(entries)} entries follow from each other; the last is\n{last}", highlight=False, soft_wrap=True)


def _entries(client: httpx.Client, after: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    place: int | None = after
    while place is not None:
        page = answer_of(client.get("/audit", params={"after": place, "limit": PAGE}))
        found += page["entries"]
        place = page["next"]
    return found


def _entry(one: dict[str, Any]) -> AuditEntry:
    rest = {name: value for name, value in one.items() if name not in ("number", "previous", "hash", "at")}
    act = Act(at=datetime.fromisoformat(one["at"]), **rest)
    return AuditEntry(one["number"], act, one["previous"], one["hash"])
