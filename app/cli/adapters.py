"""`python -m app adapters`: commands that use a running gateway over HTTP."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import httpx
import typer
from rich.console import Console
from rich.text import Text

from app.observe.ladder_table import ladder_table
from app.observe.verdict_report import heat_map, score_table
from app.upload.adapter_files import adapter_files

UPLOAD_TIMEOUT_S: Final = 900.0
"""Most seconds of an upload: gigabytes over a slow connection, then screening and loading."""

adapters = typer.Typer(
    no_args_is_help=True, help="Push, list, show, warm, screen again and remove adapters of a running gateway."
)
out, err = Console(), Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="GATEWAY_URL", help="The gateway")]
Key = Annotated[str | None, typer.Option(envvar="GATEWAY_API_KEY", help="API key of the gateway")]


def fail(message: str, status: int = 1) -> NoReturn:
    """Print an error and exit with `status`."""
    err.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    sys.exit(status)


def client_of(url: str, key: str | None, timeout_s: float = UPLOAD_TIMEOUT_S) -> httpx.Client:
    """Return a client of the gateway at `url`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=timeout_s)


def answer_of(response: httpx.Response) -> Any:
    """Return the JSON of an answer, None if it has no body; fail with the gateway's message if it is an error."""
    if response.is_success:
        return response.json() if response.content else None
    try:
        error = response.json()["error"]
        more = [f"{fault['code']}: {fault['message']}. {fault['what_to_do']}" for fault in error.get("details", [])[1:]]
        fail("\n".join([f"{error['code']}: {error['message']}", *more]))
    except (ValueError, KeyError, TypeError):
        fail(f"the gateway answered {response.status_code}: {response.text[:200]}")


@adapters.command("push")
def push(
    name: str,
    path: Annotated[Path, typer.Argument(help="An adapter's directory, its .safetensors file, or a trainer's output")],
    url: Url = "http://127.0.0.1:8080",
    key: Key = None,
) -> None:
    """Upload an adapter and show its verdict and state."""
    found = adapter_files(path)
    with client_of(url, key) as client, found.config.open("rb") as c, found.weights.open("rb") as w:
        files: Any = {
            "name": (None, name.encode()),
            "config": (found.config.name, c),
            "weights": (found.weights.name, w),
        }
        version = answer_of(client.post("/adapters", files=files))
    out.print(heat_map(version["report"]["verdict"]))
    if version["report"].get("behaviour"):
        out.print(ladder_table(version["report"]["behaviour"]))
    for remark in version["report"].get("remarks", ()):
        out.print(f"note: {remark}", highlight=False)
    out.print(_line(version), highlight=False)


def _line(version: dict[str, Any]) -> str:
    decisions = f"{version['modules_pruned']} of {version['modules_total']} modules pruned"
    if version["modules_projected"]:
        decisions += f", {version['modules_projected']} projected"
    detail = decisions if version["modules_total"] is not None else (version["error"] or {}).get("code", "")
    return f"{version['name']}@{version['version']}  {version['state']}  {version['outcome'] or '–'}  {detail}"


@adapters.command("list")
def list_adapters(url: Url = "http://127.0.0.1:8080", key: Key = None) -> None:
    """List every adapter's versions."""
    after: str | None = ""
    with client_of(url, key) as client:
        while after is not None:
            page = answer_of(client.get("/adapters", params={"after": after, "limit": 1000}))
            after = page["next"]
            for adapter in page["adapters"]:
                for version in adapter["versions"]:
                    out.print(_line(version), highlight=False)


@adapters.command("show")
def show(name: str, number: int, url: Url = "http://127.0.0.1:8080", key: Key = None) -> None:
    """Show one version's report."""
    with client_of(url, key) as client:
        version = answer_of(client.get(f"/adapters/{name}/versions/{number}"))
    out.print(_line(version), highlight=False)
    if (version.get("report") or {}).get("verdict"):
        out.print(score_table(version["report"]["verdict"]), heat_map(version["report"]["verdict"]))
    if (version.get("report") or {}).get("behaviour"):
        out.print(ladder_table(version["report"]["behaviour"]))


@adapters.command("warm")
def warm(
    name: str,
    version: Annotated[int | None, typer.Option(help="Version number; default: the active version")] = None,
    url: Url = "http://127.0.0.1:8080",
    key: Key = None,
) -> None:
    """Bring an adapter into the engines' slots before its first request. Exit status 1 if an engine is not warm."""
    with client_of(url, key) as client:
        answer = answer_of(
            client.post(f"/adapters/{name}/warm", params={} if version is None else {"version": version})
        )
    for one in answer["engines"]:
        outcome = f"warm after {one['seconds'] * 1e3:.0f} ms" if one["warm"] else one["error"]["message"]
        out.print(
            f"{answer['model']}  engine {one['engine']}  {outcome}", soft_wrap=True, highlight=False, markup=False
        )
    if not answer["engines"]:
        out.print(f"{answer['model']}  emptied: the served model answers, nothing is to be warmed", highlight=False)
    if not all(one["warm"] for one in answer["engines"]):
        sys.exit(1)


@adapters.command("rm")
def remove(name: str, url: Url = "http://127.0.0.1:8080", key: Key = None) -> None:
    """Remove an adapter with all its versions."""
    with client_of(url, key) as client:
        answer_of(client.delete(f"/adapters/{name}"))


@adapters.command("transfer")
def transfer(name: str, owner: str, url: Url = "http://127.0.0.1:8080", key: Key = None) -> None:
    """Give an adapter to another owner: a key's name, or the label that several keys share."""
    with client_of(url, key) as client:
        answer = answer_of(client.put(f"/adapters/{name}/owner", json={"owner": owner}))
    out.print(f"{answer['name']}  belongs to {answer['owner']}", highlight=False)


@adapters.command("rescreen")
def rescreen(
    name: Annotated[str | None, typer.Argument(help="One adapter; or --all")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every adapter, one after another")] = False,
    url: Url = "http://127.0.0.1:8080",
    key: Key = None,
) -> None:
    """Screen kept uploads again by the current policy and reference, and serve the resulting versions.

    Exit status: 0 if every version passed or nothing was to be done, 1 if one was refused, failed or was not kept.
    """
    if (name is None) is not every:
        fail("name one adapter, or ask for --all", 2)
    with client_of(url, key) as client:
        if name is not None:
            out.print(_line(answer_of(client.post(f"/adapters/{name}/rescreen"))), highlight=False)
            return
        counts = _rescreen_all(client)
    out.print(", ".join(f"{count} {result.replace('_', ' ')}" for result, count in counts.items()), highlight=False)
    if counts["refused"] or counts["failed"] or counts["not_kept"]:
        sys.exit(1)


def _rescreen_all(client: httpx.Client) -> dict[str, int]:
    """Print each adapter's result as it arrives; return the number of each result."""
    with client.stream("POST", "/rescreen") as response:
        if not response.is_success:
            response.read()
            answer_of(response)
        for kind, fields in _events(response.iter_lines()):
            if kind == "done":
                return fields
            detail = fields["error"]["message"] if fields["error"] else _line(fields["version"])
            line = f"{fields['name']}  {fields['result'].replace('_', ' ')}  {detail}"
            out.print(line, soft_wrap=True, highlight=False, markup=False)
    fail("the gateway broke off")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parse server-sent events as the gateway writes them: one line of data each."""
    kind = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, json.loads(value)
