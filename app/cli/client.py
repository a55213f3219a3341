"""Client of a running gateway for the commands: its address and key, its answers, and how a command ends."""

import json
import os
import sys
from typing import Annotated, Any, Final, NoReturn

import httpx
import typer
from rich.console import Console
from rich.text import Text

from app.observe.fitted_table import FittedTable
from app.observe.version_table import version_line

UPLOAD_TIMEOUT_S: Final = 900.0
"""Most seconds of an upload: gigabytes over a slow connection, then screening and loading."""

PIPE_WIDTH: Final = 400
"""Columns of tables that go into a pipe or file: nothing is wrapped there, or cut."""

AS_IT_CAME: Final = 0
NOT_ASKED: Final = 1
REJECTED: Final = 2
CHANGED: Final = 3
"""Exit statuses of `adapters push` and `screen`: served as it came; the gateway could not be asked, or failed; rejected
or invalid; changed, and the rest is served. Every other command ends with 0 or 1, and 2 for a wrong argument."""

OURS: Final = frozenset({401, 403, 404, 405, 408, 429})
"""Statuses of a refusal that says nothing about the adapter; those from 500 on do not either."""

out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH)
err = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="GATEWAY_URL", help="The gateway, such as localhost:8080")]
Key = Annotated[str | None, typer.Option(envvar="GATEWAY_API_KEY", help="API key of the gateway")]
Json = Annotated[bool, typer.Option("--json", help="Print the gateway's answer as JSON")]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]
AdapterName = Annotated[str, typer.Argument(help="Adapter name")]

TENANT: Final = "GATEWAY_TENANT"
"""Environment variable with the tenant in which an operator's commands act; default: the key's own."""

LOCAL: Final = "http://127.0.0.1:8080"


def fail(message: str, status: int = 1) -> NoReturn:
    """Print an error and exit with `status`."""
    err.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    sys.exit(status)


def client_of(url: str, key: str | None, timeout_s: float = UPLOAD_TIMEOUT_S) -> httpx.Client:
    """Return a client of the gateway at `url`, which is http without a scheme.

    Its requests act in the tenant of the variable TENANT, if that is set.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    tenant = {"tenant": named} if (named := os.environ.get(TENANT)) else {}
    base = url if "://" in url else f"http://{url}"
    return httpx.Client(base_url=base, headers=headers, params=tenant, timeout=timeout_s)


def answer_of(response: httpx.Response, status: int = 1) -> Any:
    """Return the JSON of an answer, None if it has no body; fail with the gateway's message if it is an error."""
    if response.is_success:
        return response.json() if response.content else None
    try:
        error = response.json()["error"]
        more = [f"{fault['code']}: {fault['message']}. {fault['what_to_do']}" for fault in error.get("details", [])[1:]]
        fail("\n".join([f"{error['code']}: {error['message']}", *more]), status)
    except (ValueError, KeyError, TypeError):
        fail(f"the gateway answered {response.status_code}: {response.text[:200]}", status)


def print_json(answer: Any) -> None:
    """Print an answer as JSON, one value over several lines, whatever the terminal's width."""
    sys.stdout.write(json.dumps(answer, indent=1, ensure_ascii=False) + "\n")


def show_table(found: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    """Print these fields of objects as a table, or the objects as JSON. Times are shown to the second."""
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("none")
        return
    headings = {column: column.removesuffix("_at").replace("_", " ") for column in columns}
    wrapping = {headings[column] for column in columns if any(isinstance(one[column], list) for one in found)}
    rows = [[_cell(column, one[column]) for column in columns] for one in found]
    out.print(FittedTable(tuple(headings.values()), rows, wrapping=wrapping))


def _cell(column: str, value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(value)
    return time_of(str(value)) if column.endswith(("_at", "_until")) else str(value)


def time_of(value: str) -> str:
    """Return a time of the API's to the second: 2026-11-30 18:20:11."""
    return value[:19].replace("T", " ")


def show_version(version: dict[str, Any], as_json: bool) -> None:
    """Print a version that the gateway answered, in one line or as JSON."""
    if as_json:
        print_json(version)
    else:
        out.print(version_line(version), highlight=False)
