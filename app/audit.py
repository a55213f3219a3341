"""`python -m app store audit`: does everything hold that this gateway promises about what it keeps and what it loads?"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from app.domain.verdict import Verdict
    from app.errors import Stage
    from app.screen.reference import Reference
    from app.store.audit import Audit
    from app.store.audit_engines import Card
    from app.store.invariants import Finding

PATIENCE_S: Final = 2.0
"""Seconds between two looks: longer than any step of a gateway at work takes to become visible everywhere."""

MEASURE_S: Final = 600.0
"""Seconds one artefact may take to be measured again."""

_STORED: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

store = typer.Typer(no_args_is_help=True, help="Look after what a gateway keeps.")
out = Console()


@store.command("audit")
def audit_command(
    data: Annotated[Path, typer.Option(envvar="GATEWAY_DATA", help="The gateway's data directory")],
    catalogue_url: Annotated[
        str | None, typer.Option(envvar="GATEWAY_CATALOGUE_URL", help="If not SQLite there")
    ] = None,
    artefacts: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_ARTEFACTS", help="Their directory, if not there")
    ] = None,
    store_url: Annotated[
        str | None, typer.Option(envvar="GATEWAY_STORE_URL", help="If in object storage: list and read it all")
    ] = None,
    engine_url: Annotated[
        str | None, typer.Option(envvar="GATEWAY_ENGINE_URL", help="Ask this engine too; or several, comma-separated")
    ] = None,
    engine_resolves: Annotated[
        bool,
        typer.Option("--engine-resolves", envvar="GATEWAY_ENGINE_RESOLVES", help="It fetches adapters by itself"),
    ] = False,
    engine_api_key: Annotated[str | None, typer.Option(envvar="GATEWAY_ENGINE_API_KEY", help="Its key")] = None,
    api_keys: Annotated[
        str | None, typer.Option(envvar="GATEWAY_API_KEYS", help="Keys that must stand nowhere")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_REFERENCE", help="Measure every artefact again against this one")
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds between the two looks")] = PATIENCE_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON")] = False,
) -> None:
    """Re-read disk, catalogue and engine and report every broken invariant. Exit status: 0 none, 1 some.

    Changes nothing, and may run beside the gateway. The embedded engine is `unix:<data>/engine/engine.sock`.
    """
    from app.store.audit import audit as look
    from app.store.database import sqlite_url

    secrets = [key.strip() for key in (*(api_keys or "").split(","), engine_api_key or "")]
    urls = [part.strip() for part in (engine_url or "").split(",") if part.strip()]
    url = catalogue_url or sqlite_url(data / "catalogue.sqlite")

    kept = partial(look, data, url, secrets=secrets, artefacts=artefacts, store_url=store_url)

    def once() -> "Audit":
        listed = asyncio.run(engine_lists(urls, engine_api_key, apart=engine_resolves)) if urls else None
        return kept(listed=listed, fetching=engine_resolves)

    found = once()
    if found.findings:
        time.sleep(patience)
        found = both(found, once())
    if reference is not None:
        again, notes = measured_again(data, reference)
        found = replace(found, findings=(*found.findings, *again), notes=(*found.notes, *notes))
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        show(found)
    sys.exit(1 if found.findings else 0)


class _Silent:
    """Steps that nobody follows."""

    def took(self, stage: "Stage", seconds: float, outcome: str) -> None:
        """See Steps."""

    def validated(self) -> None:
        """See Steps."""

    def screened(self, verdict: "Verdict") -> None:
        """See Steps."""


def measured_again(data: Path, reference_dir: Path) -> tuple[tuple["Finding", ...], tuple[str, ...]]:
    """I9: every artefact, sanitised by the policy of its own manifest, passes whole and is itself: (findings, notes).

    Seconds for each artefact of a large model. Raises Unavailable when the reference cannot be opened.
    """
    from app.domain.artefact import MANIFEST_FILE
    from app.domain.digest import SHORT
    from app.screen.reference import open_reference
    from app.store.audit import ARTEFACTS
    from app.store.invariants import Finding

    reference, findings, others = open_reference(reference_dir, None), [], 0
    for folder in sorted(path.parent for path in (data / ARTEFACTS).glob(f"*/{MANIFEST_FILE}")):
        try:
            fields = json.loads((folder / MANIFEST_FILE).read_bytes())["verdict"]
            if fields["reference"] != str(reference.digest):
                others += 1
                continue
            wrong = _wrong_once_measured(folder, reference, fields["policy"])
        except (ValueError, LookupError, TypeError, OSError) as error:
            wrong = f"cannot be measured again: {type(error).__name__}"
        if wrong is not None:
            findings.append(Finding("I9", f"artefact {folder.name[:SHORT]}", wrong))
    return tuple(findings), (f"{others} artefacts were measured against another reference",) if others else ()


def _wrong_once_measured(folder: Path, reference: "Reference", policy: Mapping[str, Any]) -> str | None:
    from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
    from app.domain.digest import digest_of
    from app.domain.lora import Received, ServingDtype, TargetModel
    from app.domain.policy import policy_from
    from app.errors import GatewayError
    from app.pipeline import MAX_RANK
    from app.sanitise import Measure, accepting, sanitise
    from app.store.evidence import read_blob
    from app.validate.adapter import ValidateLimits

    config, seen, nothing = (folder / CONFIG_FILE).read_bytes(), read_blob(folder), digest_of(b"")
    dtypes = set((seen.tensors or {}).values())
    dtype = next((kind for kind, name in _STORED.items() if dtypes == {name}), None)
    if dtype is None:
        return "holds several dtypes, or none"
    target = TargetModel(
        json.loads(config)["base_model_name_or_path"], reference.modules, ServingDtype(dtype), MAX_RANK
    )
    measure = Measure(target, ValidateLimits(), reference, accepting(policy_from(policy)), MEASURE_S)
    try:
        with (folder / WEIGHTS_FILE).open("rb") as weights:
            made = sanitise(measure, config, weights, Received(nothing, nothing, 0, 0), _Silent())
    except GatewayError as error:
        return str(error)
    return None if made is not None and made.digest.hex == folder.name else "does not pass, or not unchanged"


def both(first: "Audit", second: "Audit") -> "Audit":
    """The second look, with those findings only that the first had too: a gateway at work was not caught between steps."""
    return replace(second, findings=tuple(found for found in second.findings if found in first.findings))


async def engine_list(url: str, api_key: str | None = None) -> Mapping[str, "Card"]:
    """What the engine at `url` holds: its names and what each reads. Raises Unavailable ENGINE_UNAVAILABLE."""
    from app.load.engine import HttpEngine
    from app.store.audit_engines import Card

    engine = HttpEngine(url, api_key=api_key)
    try:
        return {name: Card(**card) for name, card in (await engine.cards()).items()}
    finally:
        await engine.close()


async def engine_lists(urls: Sequence[str], api_key: str | None = None, *, apart: bool = False) -> Mapping[str, "Card"]:
    """What several engines hold, as one list: under its own name what all of them hold alike, under a name of its own
    whatever only some do, or do otherwise. apart: each names paths of its own, so nothing is alike but the model. Raises
    Unavailable ENGINE_UNAVAILABLE when one of them does not say.
    """
    from app.domain.engines import dns_name
    from app.load.discovery import addresses
    from app.store.audit_engines import IN_ENGINE

    names = [(url, dns_name(url)) for url in urls]
    each = [at for url, name in names for at in (await addresses(name) if name else (url,))]
    first, *others = [await engine_list(url, api_key) for url in each]
    if not others:
        return first
    alike = {name: card for name, card in first.items() if all(name in one for one in others)}
    together = {name: card for name, card in alike.items() if not apart or card.parent is None}
    for number, one in enumerate((first, *others), 1):
        odd = {name: card for name, card in one.items() if together.get(name) != card and _is_adapter(name, card)}
        together |= {f"{name}{IN_ENGINE}{number}": card for name, card in odd.items()}
    return together


def _is_adapter(name: str, card: "Card") -> bool:
    """The engine's own model, which each may keep elsewhere, is none."""
    return "@" in name or card.parent is not None


def show(found: "Audit") -> None:
    """For people: a table of what is broken, then what was looked at."""
    if found.findings:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in ("broken", "where", "what"):
            table.add_column(column, overflow="fold")
        for one in found.findings:
            table.add_row(one.invariant, one.where, one.what)
        out.print(table)
    for note in found.notes:
        out.print(f"note: {note}", soft_wrap=True, highlight=False)
    counted = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in found.counts.items())
    out.print(f"{len(found.findings)} broken invariants; looked at {counted}", soft_wrap=True, highlight=False)
