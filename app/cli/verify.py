"""`python -m app verify`: whether a directory holds the files of an adapter that a gateway signed a statement about."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app.cli.client import REJECTED, Json, fail, out, print_json
from app.domain.artefact import MANIFEST_FILE
from app.domain.digest import Digest
from app.domain.errors import Refused
from app.domain.model_signing import ATTESTATION_FILE, IGNORED
from app.domain.statement import PAYLOAD_TYPE, SCREENING, Statement
from app.store.artefacts.signatures import statement_in
from app.store.envelope import MAX_BYTES, key_id, opened, read_public_key


def verify(
    directory: Annotated[Path, typer.Argument(help="Directory with adapter_config.json and adapter_model.safetensors")],
    key: Annotated[Path, typer.Option(help="Public key of the gateway's operator, PEM")],
    statement: Annotated[
        Path | None,
        typer.Option(
            help=f"Envelope; default: {ATTESTATION_FILE} there, else the one in {MANIFEST_FILE}", metavar="FILE"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify an adapter offline: signature, and the bytes of all its files. Prints how it was screened.

    GET /adapters/{name}/versions/{n}/attestation answers the statement; a signed manifest carries one, too. Exit
    status: 0 if it is genuine and covers these files and no others, 2 if not, 1 if something cannot be read.
    """
    try:
        public = read_public_key(key)
        envelope = _envelope(directory, statement)
        found = {path.name: _digest(path) for path in directory.iterdir() if path.name not in IGNORED}
    except (OSError, ValueError) as error:
        fail(str(error))
    try:
        genuine = Statement.decode(opened(envelope, PAYLOAD_TYPE, public))
        genuine.check(found)
    except Refused as refused:
        typer.echo(f"not verified: {refused.message}\n{refused.code.hint}", err=True)
        sys.exit(REJECTED)
    if as_json:
        print_json(genuine.predicate)
        return
    out.print(_table(genuine, key_id(public)))


def _envelope(directory: Path, statement: Path | None) -> bytes:
    """Return the envelope, of at most MAX_BYTES. Raises OSError."""
    beside = statement or directory / ATTESTATION_FILE
    if statement is None and not beside.exists():
        carried = statement_in((directory / MANIFEST_FILE).read_bytes())
        if carried is not None:
            return json.dumps(carried).encode()
    with beside.open("rb") as file:
        return file.read(MAX_BYTES)


def _digest(path: Path) -> Digest | None:
    """Return the digest of a file, None for a folder."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def _table(genuine: Statement, signed_by: str) -> Table:
    said, table = genuine.predicate, Table(box=None, show_header=False, pad_edge=False)
    verdict, canaries = said["verdict"], said.get("canaries")
    changed = f"{verdict['modules_pruned']} pruned, {verdict['modules_projected']} projected"
    rows = {
        "verified": f"signature and the bytes of {', '.join(sorted(genuine.files))}",
        "signed by": f"the key {signed_by[:12]}…",
        "version": f"{said.get('model', 'any of this artefact')}, by gateway {said['gateway']}",
        "outcome": f"{verdict['outcome']}: of {verdict['modules_total']} modules {changed}",
        "verdict": verdict["id"],
        "reference": said["reference"],
        "canaries": ("none were asked" if genuine.kind == SCREENING else "this statement says nothing about them")
        if canaries is None
        else f"battery {canaries['battery']}, judge {canaries['judge']}, correction {canaries['chosen']}",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table
