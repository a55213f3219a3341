"""`python -m app adapters`: commands that use a running gateway over HTTP."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final

import httpx
import typer

from app.cli.client import LOCAL, AdapterName, Json, Key, Url, answer_of, client_of, fail, out, print_json, show_version
from app.cli.push import push_adapter
from app.cli.traffic import abort, promote, traffic
from app.observe.ladder_table import ladder_table
from app.observe.verdict_report import heat_map, score_table
from app.observe.version_table import version_line, version_table

PAGE: Final = 1000
"""Adapters asked for at once."""

adapters = typer.Typer(
    no_args_is_help=True,
    help="Push, list, show, roll out, roll back, warm, screen again and remove adapters of a running gateway.",
)
adapters.command("push")(push_adapter)
adapters.command("traffic")(traffic)
adapters.command("promote")(promote)
adapters.command("abort")(abort)

VersionNumber = Annotated[int | None, typer.Argument(help="Version; default: the active one, else the newest")]


@adapters.command("list")
def list_adapters(url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """List every adapter's versions; the active one is marked."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    with client_of(url, key) as client:
        while after is not None:
            page = answer_of(client.get("/adapters", params={"after": after, "limit": PAGE}))
            after = page["next"]
            found += page["adapters"]
    if as_json:
        print_json(found)
    elif found:
        out.print(version_table(version for adapter in found for version in adapter["versions"]))
    else:
        out.print("no adapters yet: python -m app adapters push NAME DIR", highlight=False)


@adapters.command("versions")
def versions(name: AdapterName, url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """List the versions of one adapter, the newest first; the active one is marked."""
    with client_of(url, key) as client:
        adapter = answer_of(client.get(f"/adapters/{name}"))
    if as_json:
        print_json(adapter)
    else:
        out.print(version_table(adapter["versions"]))


@adapters.command("show")
def show(
    name: AdapterName,
    number: VersionNumber = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show one version's report."""
    with client_of(url, key) as client:
        version = answer_of(client.get(_path(client, name, number)))
    if as_json:
        print_json(version)
        return
    out.print(version_line(version), highlight=False)
    if version["error"]:
        out.print(f"{version['error']['code']}: {version['error']['message']}", highlight=False, soft_wrap=True)
    report = version.get("report") or {}
    if report.get("verdict"):
        out.print(score_table(report["verdict"]), heat_map(report["verdict"]))
    if report.get("behaviour"):
        out.print(ladder_table(report["behaviour"]))


def _path(client: httpx.Client, name: str, number: int | None) -> str:
    """Return the path of a version; None: the active one, or the newest if none is active."""
    return f"/adapters/{name}/versions/{number or _current(client, name)}"


def _current(client: httpx.Client, name: str) -> int:
    """Return the number of the active version, or of the newest if none is active."""
    adapter = answer_of(client.get(f"/adapters/{name}"))
    newest = adapter["versions"][0]["version"] if adapter["versions"] else None
    if (number := adapter["active_version"] or newest) is None:
        fail(f"{name} has no version yet")
    return int(number)


@adapters.command("attestation")
def attestation(
    name: AdapterName,
    number: VersionNumber = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Print a signed statement about one version, which `verify` reads: JSON, to keep as attestation.json."""
    with client_of(url, key) as client:
        print_json(answer_of(client.get(f"{_path(client, name, number)}/attestation")))


@adapters.command("signature")
def signature(
    name: AdapterName,
    number: VersionNumber = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Print an OpenSSF Model Signing signature of one version's files: JSON, to keep as model.sig."""
    with client_of(url, key) as client:
        print_json(answer_of(client.get(f"{_path(client, name, number)}/signature")))


@adapters.command("rollback")
def rollback(
    name: AdapterName,
    to: Annotated[int | None, typer.Option(help="Version number; default: the one before the active version")] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Point an adapter's name to an earlier version."""
    with client_of(url, key) as client:
        version = answer_of(client.post(f"/adapters/{name}/rollback", params={} if to is None else {"to": to}))
    show_version(version, as_json)


@adapters.command("events")
def events(
    name: AdapterName,
    follow: Annotated[bool, typer.Option(help="Go on with every later version, until Ctrl-C")] = False,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Print the states of an adapter's newest version as it goes through them."""
    with client_of(url, key) as client:
        after: int | None = None
        while True:
            for fields in _states(client, name, after):
                after = fields["version"]
                sys.stdout.write(f"{json.dumps(fields)}\n" if as_json else f"{name}@{after}  {fields['state']}\n")
                sys.stdout.flush()
            if not follow:
                return


def _states(client: httpx.Client, name: str, after: int | None) -> Iterator[dict[str, Any]]:
    params = {} if after is None else {"after": after}
    with client.stream("GET", f"/adapters/{name}/events", params=params, timeout=None) as response:
        if not response.is_success:
            response.read()
            answer_of(response)
        for _, fields in _events(response.iter_lines()):
            yield fields


@adapters.command("warm")
def warm(
    name: AdapterName,
    version: Annotated[int | None, typer.Option(help="Version number; default: the active version")] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Bring an adapter into the engines' slots before its first request. Exit status 1 if an engine is not warm."""
    with client_of(url, key) as client:
        answer = answer_of(
            client.post(f"/adapters/{name}/warm", params={} if version is None else {"version": version})
        )
    if as_json:
        print_json(answer)
    else:
        _show_warm(answer)
    if not all(one["warm"] for one in answer["engines"]):
        sys.exit(1)


def _show_warm(answer: dict[str, Any]) -> None:
    for one in answer["engines"]:
        outcome = f"warm after {one['seconds'] * 1e3:.0f} ms" if one["warm"] else one["error"]["message"]
        out.print(
            f"{answer['model']}  engine {one['engine']}  {outcome}", soft_wrap=True, highlight=False, markup=False
        )
    if not answer["engines"]:
        out.print(f"{answer['model']}  emptied: the served model answers, nothing is to be warmed", highlight=False)


@adapters.command("rm")
def remove(
    name: AdapterName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Remove an adapter with all its versions."""
    if not yes and not sys.stdin.isatty():
        fail(f"removing {name} with all its versions cannot be undone: say --yes", 2)
    if not yes:
        typer.confirm(f"Remove {name} with all its versions? This cannot be undone.", abort=True)
    with client_of(url, key) as client:
        answer_of(client.delete(f"/adapters/{name}"))
    out.print(f"{name} is removed", highlight=False)


@adapters.command("transfer")
def transfer(
    name: AdapterName,
    owner: Annotated[str, typer.Argument(help="Name of a key, or the label that several keys share")],
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give an adapter to another owner: a key's name, or the label that several keys share."""
    with client_of(url, key) as client:
        answer = answer_of(client.put(f"/adapters/{name}/owner", json={"owner": owner}))
    if as_json:
        print_json(answer)
    else:
        out.print(f"{answer['name']}  belongs to {answer['owner']}", highlight=False)


@adapters.command("rescreen")
def rescreen(
    name: Annotated[str | None, typer.Argument(help="One adapter; or --all")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every adapter, one after another")] = False,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each result as a line of JSON")] = False,
) -> None:
    """Screen kept uploads again by the current policy and reference, and serve the resulting versions.

    Exit status: 0 if every version passed or nothing was to be done, 1 if one was refused, failed or was not kept.
    """
    if (name is None) is not every:
        fail("name one adapter, or ask for --all", 2)
    with client_of(url, key) as client:
        if name is not None:
            version = answer_of(client.post(f"/adapters/{name}/rescreen"))
            _tell(version, version_line(version), as_json)
            return
        counts = _rescreen_all(client, as_json)
    _tell(counts, ", ".join(f"{count} {result.replace('_', ' ')}" for result, count in counts.items()), as_json)
    if counts["refused"] or counts["failed"] or counts["not_kept"]:
        sys.exit(1)


def _tell(answer: object, line: str, as_json: bool) -> None:
    """Print a line, or the answer as JSON on one."""
    if as_json:
        sys.stdout.write(f"{json.dumps(answer)}\n")
    else:
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def _rescreen_all(client: httpx.Client, as_json: bool) -> dict[str, int]:
    """Print each adapter's result as it arrives; return the number of each result."""
    with client.stream("POST", "/rescreen") as response:
        if not response.is_success:
            response.read()
            answer_of(response)
        for kind, fields in _events(response.iter_lines()):
            if kind == "done":
                return fields
            detail = fields["error"]["message"] if fields["error"] else version_line(fields["version"])
            _tell(fields, f"{fields['name']}  {fields['result'].replace('_', ' ')}  {detail}", as_json)
    return fail("the gateway broke off")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parse server-sent events as the gateway writes them: one line of data each."""
    kind = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, json.loads(value)
