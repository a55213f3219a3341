"""Use cases: signed statements about one version, made from what was stored when it was screened."""

import json
from collections.abc import Mapping
from typing import Any

from app import __version__
from app.domain.errors import NOT_SIGNED, VERSION_NOT_READY, Refused
from app.domain.model_signing import bundle_of, model_statement
from app.domain.statement import PAYLOAD_TYPE, Statement, screening_statement
from app.domain.version_state import SERVABLE
from app.gateway.components import Components
from app.store.envelope import Signer, on_p256


def attestation(components: Components, signer: Signer | None, name: str, number: int) -> Mapping[str, Any]:
    """Return the DSSE envelope of the statement about a version, as plain JSON values. Blocking.

    It is signed anew each time with the key in force, so a new key needs no other step. Raises Refused NOT_SIGNED without
    a key, VERSION_NOT_READY for a version without an artefact or one that is withheld, and what the catalogue raises.
    """
    signer, statement = _stated(components, signer, name, number)
    return signer.sign(statement.encode(), PAYLOAD_TYPE)


def model_signature(components: Components, signer: Signer | None, name: str, number: int) -> Mapping[str, Any]:
    """Return the OpenSSF Model Signing signature of a version's files, as plain JSON values: a Sigstore bundle. Blocking.

    Raises as `attestation`; also NOT_SIGNED for an Ed25519 key, which the format does not have.
    """
    signer, statement = _stated(components, signer, name, number)
    if not on_p256(signer.key.public_key()):
        raise Refused(NOT_SIGNED, "this gateway's key is Ed25519, and OpenSSF Model Signing takes ECDSA on P-256 only")
    envelope = signer.sign(model_statement(statement.predicate["model"], statement.files), PAYLOAD_TYPE)
    return bundle_of(envelope, signer.public_pem)


def _stated(components: Components, signer: Signer | None, name: str, number: int) -> tuple[Signer, Statement]:
    """Return the signer, and the statement about a version. Raises as `attestation`."""
    row = components.catalogue.version(name, number)
    if signer is None:
        raise Refused(NOT_SIGNED, "this gateway has no key to sign with")
    withheld = components.desired.state.withheld.get(row.key)
    report = components.catalogue.report(name, number)
    if row.state not in SERVABLE or row.artefact is None or report is None or withheld is not None:
        why = f"it is withheld: {withheld}" if withheld else f"it is {row.state.value}, and no artefact of it is served"
        raise Refused(VERSION_NOT_READY, f"version {number}: {why}", param="version")
    manifest, model = json.loads(components.blobs.checked_manifest(row.artefact)), f"{row.name}@{number}"
    return signer, screening_statement(model, __version__, manifest, json.loads(report))
