"""Signed statements about artefacts, by the gateway's operator: DSSE envelopes (github.com/secure-systems-lab/dsse)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_gateway_vllm.artefact import FILES, digest_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Key = EllipticCurvePublicKey | Ed25519PublicKey

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
MAX_SIGNATURES: Final = 8
"""Most signatures of an envelope that are looked at."""

ARTEFACT: Final = "urn:lora-gateway:artefact:1"
"""Type of the predicate: how the gateway screened an artefact."""


def read_keys(paths: Sequence[Path]) -> tuple[Key, ...]:
    """Read public keys in PEM: Ed25519, or ECDSA on the curve P-256. Raises ValueError with the reason."""
    if not paths:
        return ()
    try:
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise ValueError("to verify signatures, install the package cryptography beside vLLM") from error
    keys: list[Key] = []
    for path in paths:
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path}: no public key in PEM") from error
        if isinstance(key, Ed25519PublicKey) or (
            isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
        ):
            keys.append(key)
            continue
        raise ValueError(f"{path}: a key of another kind than Ed25519, or ECDSA on the curve P-256")
    return tuple(keys)


def objection(envelope: object, digest: str, keys: Sequence[Key]) -> str | None:
    """Return why an artefact must not be served; None if one of the keys signed a statement about these very files.

    envelope: as the gateway answered it, of any form. digest: the artefact's, over both files.
    """
    if envelope is None:
        return "the gateway has no signed statement about it"
    try:
        kind, payload, signatures = _parts(envelope)
        data = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)  # the protocol's PAE
    except (ValueError, LookupError, TypeError, RecursionError, binascii.Error):
        return "what should be a signed statement is not one"
    if not any(_signed(key, signature, data) for key in keys for signature in signatures[:MAX_SIGNATURES]):
        return "no trusted key signed the statement about it"
    return None if _is_about(kind, payload, digest) else "the signed statement is about something else"


def _parts(envelope: object) -> tuple[bytes, bytes, list[bytes]]:
    if not isinstance(envelope, dict):
        raise TypeError
    signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
    return str(envelope["payloadType"]).encode(), base64.b64decode(envelope["payload"], validate=True), signatures


def _signed(key: Key, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _is_about(kind: bytes, payload: bytes, digest: str) -> bool:
    try:
        fields = json.loads(payload)
        hashes = {one["name"]: one["digest"]["sha256"] for one in fields["subject"]}
        if (kind, fields["_type"], fields["predicateType"]) != (PAYLOAD_TYPE.encode(), STATEMENT, ARTEFACT):
            return False
        return set(hashes) == set(FILES) and digest_of(hashes) == digest
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
