"""Use case: signed statement about one version, made from what was stored when it was screened."""

import json
from collections.abc import Mapping
from typing import Any

from app import __version__
from app.domain.errors import NOT_SIGNED, VERSION_NOT_READY, Refused
from app.domain.statement import PAYLOAD_TYPE, screening_statement
from app.domain.version_state import SERVABLE
from app.gateway.components import Components
from app.store.envelope import Signer


def attestation(components: Components, signer: Signer | None, name: str, number: int) -> Mapping[str, Any]:
    """Return the DSSE envelope of the statement about a version, as plain JSON values. Blocking.

    It is signed anew each time with the key in force, so a new key needs no other step. Raises Refused NOT_SIGNED without
    a key, VERSION_NOT_READY for a version without an artefact or one that is withheld, and what the catalogue raises.
    """
    row = components.catalogue.version(name, number)
    if signer is None:
        raise Refused(NOT_SIGNED, "this gateway has no key to sign with")
    withheld = components.desired.state.withheld.get(row.key)
    report = components.catalogue.report(name, number)
    if row.state not in SERVABLE or row.artefact is None or report is None or withheld is not None:
        why = f"it is withheld: {withheld}" if withheld else f"it is {row.state.value}, and no artefact of it is served"
        raise Refused(VERSION_NOT_READY, f"version {number}: {why}", param="version")
    manifest = json.loads(components.blobs.manifest(row.artefact))
    statement = screening_statement(f"{row.name}@{number}", __version__, manifest, json.loads(report))
    return signer.sign(statement.encode(), PAYLOAD_TYPE)
