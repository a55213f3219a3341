"""`python -m app adapters push`: upload of one adapter, with its progress, verdict and exit status."""

import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from app.cli.client import (
    AS_IT_CAME,
    CHANGED,
    LOCAL,
    NOT_ASKED,
    OURS,
    REJECTED,
    AdapterName,
    Json,
    Key,
    Url,
    answer_of,
    client_of,
    err,
    fail,
    out,
    print_json,
)
from app.cli.hub_source import fetched
from app.domain.adapter_source import BUCKET, BUCKET_FORM, HUB, HUB_FORM, HubSource, source_of
from app.domain.errors import BAD_SOURCE, Refused
from app.observe.ladder_table import ladder_table
from app.observe.verdict_report import heat_map, worst_modules
from app.observe.version_table import version_line
from app.upload.adapter_files import AdapterFiles, adapter_files


def push_adapter(
    name: AdapterName,
    source: Annotated[
        str,
        typer.Argument(
            help=f"An adapter's directory, its .safetensors file, a trainer's output, or {escape(HUB_FORM)}"
        ),
    ],
    remote: Annotated[
        bool,
        typer.Option("--remote", help=f"Have the gateway fetch it itself: {escape(HUB_FORM)} or {escape(BUCKET_FORM)}"),
    ] = False,
    signature: Annotated[
        Path | None,
        typer.Option(help="OpenSSF Model Signing signature of its two files, as `model_signing sign key` writes it"),
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Upload an adapter and show its verdict and state. One on the Hugging Face hub is fetched to this machine first, or by
    the gateway with --remote.

    Exit status: 0 served as it came, 3 changed, 2 rejected or invalid, 1 if the gateway could not be asked.
    """
    if remote and signature is not None:
        raise typer.BadParameter("what the gateway fetches itself has no signature", param_hint="--signature")
    asked = {"name": name, "source": str(source_of(source))} if remote else None
    found = _found(source) if asked is None else None
    with client_of(url, key) as client:
        response = client.post("/adapters", json=asked) if found is None else _sent(client, name, found, signature)
    if as_json:
        print_json(response.json())
        sys.exit(_status(response))
    if not response.is_success:
        _show_rejection(response)
        answer_of(response, _status(response))
    version = response.json()
    report = version["report"]
    if "source" in report:
        pins = (f"{what} {pin}" for what, pin in report["source"]["pin"].items())
        err.print(f"{report['source']['name']} at {', '.join(pins)}", highlight=False, soft_wrap=True)
    out.print(heat_map(report["verdict"]))
    if report.get("behaviour"):
        out.print(ladder_table(report["behaviour"]))
    for remark in report.get("remarks", ()):
        out.print(f"note: {remark}", highlight=False)
    out.print(version_line(version), highlight=False)
    sys.exit(_status(response))


def _found(source: str) -> AdapterFiles:
    """Return an adapter's files, fetching them from the hub if they are there."""
    if source.startswith(BUCKET):
        raise Refused(BAD_SOURCE, f"{BUCKET_FORM} is fetched by the gateway only", remedy="Add --remote.")
    if not source.startswith(HUB):
        return adapter_files(Path(source))
    hub = HubSource.parse(source)
    found, commit = fetched(hub)
    err.print(f"{hub.repository} at commit {commit}", highlight=False)
    return found


def _sent(client: httpx.Client, name: str, found: AdapterFiles, signature: Path | None) -> httpx.Response:
    """Send the upload; a terminal shows how far it is, and how fast."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        Progress(
            TextColumn("{task.description}"), *columns, console=err, transient=True, disable=not err.is_terminal
        ) as bar,
        found.config.open("rb") as config,
        bar.open(found.weights, "rb", description=found.weights.name) as weights,
    ):
        files: dict[str, tuple[str | None, bytes | BinaryIO]] = {
            "name": (None, name.encode()),
            "config": (found.config.name, config),
            "weights": (found.weights.name, weights),
        }
        if signature is not None:
            files["signature"] = (signature.name, _read(signature))
        return client.post("/adapters", files=files)


def _read(file: Path) -> bytes:
    """Return a file's bytes, or print the reason and exit."""
    try:
        return file.read_bytes()
    except OSError as error:
        fail(f"{file}: {error.strerror}")


def _status(response: httpx.Response) -> int:
    """Return the exit status that says what became of the upload."""
    if not response.is_success:
        return NOT_ASKED if response.status_code in OURS or response.status_code >= 500 else REJECTED
    version = response.json()
    return AS_IT_CAME if version["outcome"] == "clean" and not version["rung"] else CHANGED


def _show_rejection(response: httpx.Response) -> None:
    """Print the report of a version that was rejected, if there is one: its worst modules, or the ladder."""
    try:
        version: Any = response.json()["version"]
    except (ValueError, KeyError, TypeError):
        return
    report = version.get("report") or {}
    if report.get("behaviour"):
        out.print(ladder_table(report["behaviour"]))
    elif report.get("verdict"):
        out.print(worst_modules(report["verdict"]))
    shown = f"python -m app adapters show {version['name']} {version['version']}"
    out.print(f"the whole report: {shown}", highlight=False, soft_wrap=True)
