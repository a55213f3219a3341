"""Signed envelopes: DSSE (github.com/secure-systems-lab/dsse, protocol.md 1.0.2) with Ed25519 or ECDSA P-256 keys."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from app.domain.errors import BAD_STATEMENT, Refused

MAX_BYTES: Final = 1 << 20
"""Most bytes of an envelope; its size does not depend on the adapter's."""

MAX_SIGNATURES: Final = 8
"""Most signatures of an envelope: each is tried with each key."""

WANTED: Final = "Ed25519, or ECDSA on the curve P-256"

PublicKey: TypeAlias = Ed25519PublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key that signs, and the id of its public key."""

    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    key_id: str

    @classmethod
    def read(cls, path: Path) -> "Signer":
        """Read an unencrypted private key in PEM (`openssl genpkey`). Raises ValueError with the reason."""
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: encrypted
            raise ValueError(f"{path}: no unencrypted private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey) or not _is_taken(key.public_key()):
            raise ValueError(f"{path}: a key of another kind than {WANTED}")
        return cls(key, key_id(key.public_key()))

    @property
    def public_pem(self) -> bytes:
        """Public key in PEM, SubjectPublicKeyInfo."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, payload: bytes, payload_type: str) -> dict[str, Any]:
        """Return the envelope as plain JSON values."""
        signed = _encoding(payload, payload_type)
        key = self.key
        signature = key.sign(signed) if isinstance(key, Ed25519PrivateKey) else key.sign(signed, ec.ECDSA(SHA256()))
        signatures = [{"keyid": self.key_id, "sig": base64.b64encode(signature).decode()}]
        return {"payloadType": payload_type, "payload": base64.b64encode(payload).decode(), "signatures": signatures}


def read_public_key(path: Path) -> PublicKey:
    """Read a public key in PEM (`openssl pkey -pubout`). Raises ValueError with the reason."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path}: no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey | ec.EllipticCurvePublicKey) or not _is_taken(key):
        raise ValueError(f"{path}: a key of another kind than {WANTED}")
    return key


def key_id(key: PublicKey) -> str:
    """Return the SHA-256, in hex, of the key's SubjectPublicKeyInfo in DER."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def opened(envelope: bytes, payload_type: str, key: PublicKey) -> bytes:
    """Return the payload of an envelope that this key signed. Raises Refused BAD_STATEMENT."""
    return opened_by(envelope, payload_type, (key,))[0]


def opened_by(envelope: bytes, payload_type: str, keys: Sequence[PublicKey]) -> tuple[bytes, PublicKey]:
    """Return the payload of an envelope, and the key among `keys` that signed it. Raises Refused BAD_STATEMENT.

    Key ids decide nothing: the protocol calls them hints.
    """
    try:
        fields = json.loads(envelope)
        payload = base64.b64decode(fields["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in fields["signatures"]]
        said = str(fields["payloadType"])
        data = _encoding(payload, said)
    except (ValueError, LookupError, TypeError, RecursionError, binascii.Error) as error:
        raise Refused(BAD_STATEMENT, f"it is not a DSSE envelope: {type(error).__name__}") from error
    if len(signatures) > MAX_SIGNATURES:
        raise Refused(BAD_STATEMENT, f"it has {len(signatures)} signatures; at most {MAX_SIGNATURES} are looked at")
    by = next((key for key in keys if any(_signed(key, one, data) for one in signatures)), None)
    if by is None:
        which = f"this key ({key_id(keys[0])[:12]}…)" if len(keys) == 1 else f"any of {len(keys)} keys"
        raise Refused(BAD_STATEMENT, f"no signature by {which}")
    if said != payload_type:
        raise Refused(BAD_STATEMENT, f"its payload is of another type than {payload_type}")
    return payload, by


def on_p256(key: PublicKey) -> bool:
    """Return whether it is an ECDSA key on the curve P-256."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def _is_taken(key: PublicKey) -> bool:
    return isinstance(key, Ed25519PublicKey) or on_p256(key)


def _signed(key: PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _encoding(payload: bytes, payload_type: str) -> bytes:
    """Return the bytes that are signed: the protocol's pre-authentication encoding (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
