"""`python -m app store audit`: check the invariants of stored and loaded artefacts."""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from app.domain.errors import Stage
    from app.domain.verdict import Verdict
    from app.screen.reference.open import Reference
    from app.store.audit.audit import Audit

MEASURE_S: Final = 600.0
"""Most seconds to measure one artefact again."""

NOTHING_SEEN: Final = 2
"""Exit status of an audit without findings that could not examine anything of a requested part."""

AGAIN: Final = "what is stored, measured again"
"""Name of the part of the audit that needs a reference."""

OTHER_REFERENCE: Final = "were measured against another reference"
OLDER_METRIC: Final = "were measured by another release; the gateway measures them again before it serves them"
REMOVED: Final = "that no version needs were removed by the gateway meanwhile"

_STORED: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

store = typer.Typer(no_args_is_help=True, help="Audit, move or sign a gateway's store.")
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
        str | None, typer.Option(envvar="GATEWAY_API_KEYS", help="API keys that must not appear in stored data")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_REFERENCE", help="Measure every artefact again against this one")
    ] = None,
    patience: Annotated[float | None, typer.Option(help="Seconds between the two looks; default: 2")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON")] = False,
) -> None:
    """Re-read disk, catalogue and engine; report broken invariants, and the parts that were and were not examined.

    Exit status: 0 none broken, 1 some, 2 none, but a requested part could not be examined at all. Changes nothing, and may
    run beside the gateway. The embedded engine is `unix:<data>/engine/engine.sock`.
    """
    from app.gateway.engine_lists import PATIENCE_S, engine_lists, engines_at, in_both
    from app.store.audit.audit import ARTEFACTS, Skipped
    from app.store.audit.audit import audit as look
    from app.store.open import catalogue_at

    secrets = [key.strip() for key in (*(api_keys or "").split(","), engine_api_key or "")]
    urls = [part.strip() for part in (engine_url or "").split(",") if part.strip()]
    url = catalogue_at(data, catalogue_url)

    kept = partial(look, data, url, secrets=secrets, artefacts=artefacts, store_url=store_url)

    def once() -> "Audit":
        if not urls:
            return kept().adding(skipped=[Skipped("engines", "none was given (--engine-url)")])
        each = asyncio.run(engines_at(urls))
        listed = asyncio.run(engine_lists(each, engine_api_key, apart=engine_resolves))
        return kept(listed=listed, fetching=engine_resolves).adding(counts={"engines": len(each)})

    found = once()
    if found.findings:
        time.sleep(PATIENCE_S if patience is None else patience)
        found = in_both(found, once())
    if reference is None:
        found = found.adding(skipped=[Skipped(AGAIN, "no reference was given (--reference)")])
    else:
        again = measured_again(artefacts or data / ARTEFACTS, reference, store_url)
        found = found.adding(again.findings, again.counts, again.skipped)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        show(found)
    sys.exit(status_of(found))


def status_of(found: "Audit") -> int:
    """Return the exit status: 1 if an invariant is broken, NOTHING_SEEN if a requested part was not examined, else 0."""
    if found.findings:
        return 1
    return NOTHING_SEEN if any(one.asked for one in found.skipped) else 0


class _NoSteps:
    """Steps that do nothing."""

    def took(self, stage: "Stage", seconds: float, outcome: str) -> None:
        """See Steps."""

    def validated(self) -> None:
        """See Steps."""

    def screened(self, verdict: "Verdict") -> None:
        """See Steps."""


def measured_again(root: Path, reference_dir: Path, store_url: str | None = None) -> "Audit":
    """Check I9: every artefact, sanitised again by the policy of its own manifest, passes and comes out unchanged.

    root: directory of the artefacts, or of the local copies of those at `store_url`; artefacts without a copy are read from
    there. Takes seconds per artefact of a large model. Raises Unavailable if the reference cannot be opened or the storage
    cannot be listed.
    """
    from app.domain.digest import SHORT
    from app.screen.reference.open import open_reference
    from app.store.audit.audit import Audit, Skipped
    from app.store.audit.rules import Finding

    reference, findings, measured = open_reference(reference_dir, None), [], 0
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="gateway-audit-") as spare:
        for folder in _artefacts(root, store_url, Path(spare), left_out):
            finding = _finding_when_measured(folder, reference)
            if finding in (OTHER_REFERENCE, OLDER_METRIC, REMOVED):
                left_out[finding] += 1
                continue
            measured += 1
            if finding is not None:
                findings.append(Finding("I9", f"artefact {folder.name[:SHORT]}", finding))
    skipped = [Skipped(AGAIN, f"{count} artefacts {why}", asked=not measured) for why, count in left_out.items()]
    if store_url is None and not root.is_dir():
        skipped.append(Skipped(AGAIN, f"{root} is no directory", asked=True))
    return Audit(tuple(findings), counts={"artefacts_measured_again": measured}, skipped=tuple(skipped))


def _artefacts(root: Path, store_url: str | None, spare: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Yield the directories of all artefacts; those only in object storage are downloaded temporarily into `spare`.

    left_out: counts the artefacts that could not be read, by reason.
    """
    from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
    from app.domain.errors import Unavailable
    from app.store.artefacts.s3_client import Objects

    here = sorted(path.parent for path in root.glob(f"*/{MANIFEST_FILE}"))
    yield from here
    objects = None if store_url is None else Objects(store_url)
    digests = sorted(digest.hex for digest in objects.digests()) if objects else []
    for digest in digests:
        if objects is None or digest in {folder.name for folder in here}:
            continue
        folder = spare / digest
        folder.mkdir()
        try:
            for name in (MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE):
                with (folder / name).open("wb") as file:
                    objects.stream(f"{digest}/{name}", file.write)
            yield folder
        except Unavailable:
            left_out["could not be read from the object storage"] += 1
        finally:
            shutil.rmtree(folder)


def _finding_when_measured(folder: Path, reference: "Reference") -> str | None:
    """Return the finding about one artefact; None if it passes.

    OTHER_REFERENCE or OLDER_METRIC if it is not comparable, REMOVED if it is not there any more.
    """
    from app.domain.artefact import MANIFEST_FILE
    from app.domain.verdict import METRIC_VERSION

    try:
        fields = json.loads((folder / MANIFEST_FILE).read_bytes())["verdict"]
        if fields["reference"] != str(reference.digest):
            return OTHER_REFERENCE
        if fields["metric"] != METRIC_VERSION:
            return OLDER_METRIC
        return _sanitised_again(folder, reference, fields["policy"])
    except (ValueError, LookupError, TypeError, OSError) as error:
        if not folder.exists():  # a missing one that a version needs is another finding, I2
            return REMOVED
        return f"cannot be measured again: {type(error).__name__}"


def _sanitised_again(folder: Path, reference: "Reference", policy: Mapping[str, Any]) -> str | None:
    from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
    from app.domain.digest import digest_of
    from app.domain.errors import GatewayError
    from app.domain.lora import Received, ServingDtype, TargetModel
    from app.domain.policy import policy_from
    from app.gateway.directory_screening import MAX_RANK
    from app.prune.canonical import CONFIG_BYTES
    from app.sandbox.sanitise import Measure, accepting, sanitise
    from app.store.audit.snapshot import read_blob
    from app.validate.adapter import ValidateLimits

    config, seen, nothing = (folder / CONFIG_FILE).read_bytes(), read_blob(folder), digest_of(b"")
    dtypes = set((seen.tensors or {}).values())
    dtype = next((kind for kind, name in _STORED.items() if dtypes == {name}), None)
    if dtype is None:
        return "holds several dtypes, or none"
    target = TargetModel(
        json.loads(config)["base_model_name_or_path"], reference.modules, ServingDtype(dtype), MAX_RANK
    )
    limits = ValidateLimits(max_config_bytes=CONFIG_BYTES)
    measure = Measure(target, limits, reference, accepting(policy_from(policy)), MEASURE_S)
    try:
        with (folder / WEIGHTS_FILE).open("rb") as weights:
            made = sanitise(measure, config, weights, Received(nothing, nothing, 0, 0), _NoSteps())
    except GatewayError as error:
        return str(error)
    return None if made is not None and made.digest.hex == folder.name else "does not pass, or not unchanged"


def show(found: "Audit") -> None:
    """Print a table of broken invariants, then the parts that were and were not examined."""
    if found.findings:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in ("broken", "where", "what"):
            table.add_column(column, overflow="fold")
        for one in found.findings:
            table.add_row(one.invariant, one.where, one.what)
        out.print(table)
    for note in found.notes:
        out.print(f"note: {note}", soft_wrap=True, highlight=False)
    for part in found.skipped:
        out.print(f"not looked at: {part.what}: {part.why}", soft_wrap=True, highlight=False)
    counted = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in found.counts.items())
    summary = f"{len(found.findings)} broken invariants in what was looked at: {counted}"
    if status_of(found) == NOTHING_SEEN:
        not_examined = ", ".join(sorted({part.what for part in found.skipped if part.asked}))
        summary = f"{summary}. This is no all-clear: asked for and not looked at: {not_examined}"
    out.print(summary, soft_wrap=True, highlight=False)
