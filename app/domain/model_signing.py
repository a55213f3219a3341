"""OpenSSF Model Signing: the statement about a model's files that its tool `model_signing` makes and verifies, v1.0.

Specification: github.com/ossf/model-signing-spec. The statement is in in-toto's form, its envelope DSSE, and that is part
of a Sigstore bundle, the file `model.sig`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from app.domain.artefact import MANIFEST_FILE
from app.domain.digest import Digest
from app.domain.errors import BAD_STATEMENT, Refused
from app.domain.statement import STATEMENT

PREDICATE: Final = "https://model_signing/signature/v1.0"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""Media type of a Sigstore bundle."""

ATTESTATION_FILE: Final = "attestation.json"
"""Name of a statement's envelope beside the files it covers."""

SIGNATURE_FILE: Final = "model.sig"
IGNORED: Final = (ATTESTATION_FILE, MANIFEST_FILE, SIGNATURE_FILE)
"""Files beside an adapter's that no statement or signature covers: no engine reads them."""


def model_statement(name: str, files: Mapping[str, Digest]) -> bytes:
    """Return the statement about a model's files, as JSON."""
    resources = [{"name": file, "algorithm": "sha256", "digest": files[file].hex} for file in sorted(files)]
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(IGNORED)}
    fields = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(files).hex}}],
        "predicateType": PREDICATE,
        "predicate": {"serialization": serialization, "resources": resources},
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def signed_files(payload: bytes) -> Mapping[str, Digest]:
    """Return the files that a statement covers. Raises Refused BAD_STATEMENT if it is not one of this kind."""
    try:
        fields = json.loads(payload)
        if (fields["_type"], fields["predicateType"]) != (STATEMENT, PREDICATE):
            raise Refused(BAD_STATEMENT, "it is a statement about something else than a model's files")
        resources = fields["predicate"]["resources"]
        if any(one["algorithm"] != "sha256" for one in resources):
            raise Refused(BAD_STATEMENT, "its files are hashed by another algorithm than sha256, or by parts")
        files = {str(one["name"]): Digest(one["digest"]) for one in resources}
        roots = [one["digest"]["sha256"] for one in fields["subject"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Refused(BAD_STATEMENT, f"it is not a statement about a model's files: {type(error).__name__}") from error
    if len(files) != len(resources) or roots != [_root(files).hex]:
        raise Refused(BAD_STATEMENT, "its digest is not that of the files it lists")
    return files


def bundle_of(envelope: Mapping[str, Any], public_key_pem: bytes) -> dict[str, Any]:
    """Return the Sigstore bundle of an envelope that this key signed, as plain JSON values."""
    hint = hashlib.sha256(public_key_pem).hexdigest()
    material = {"publicKey": {"hint": hint}, "tlogEntries": []}
    return {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": dict(envelope)}


def envelope_in(bundle: bytes) -> bytes:
    """Return the envelope of a bundle, as JSON. Raises Refused BAD_STATEMENT."""
    try:
        return json.dumps(json.loads(bundle)["dsseEnvelope"]).encode()
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Refused(BAD_STATEMENT, f"it is not a Sigstore bundle: {type(error).__name__}") from error


def _root(files: Mapping[str, Digest]) -> Digest:
    """Return SHA-256 over the files' digests, in the order of their names."""
    return Digest(hashlib.sha256(b"".join(bytes.fromhex(files[name].hex) for name in sorted(files))).hexdigest())
