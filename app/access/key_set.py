"""Key set of an issuer (JWKS, RFC 7517): the keys in it that may verify signatures, by their ids."""

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""Accepted signatures. All are asymmetric: a public key cannot be taken for a shared secret."""

MAX_KEYS: Final = 100
"""Most keys of a set. Issuers have two to ten."""

RSA_BITS: Final = range(2048, 8192 + 1)
"""Accepted sizes of RSA keys: smaller ones are weak, with larger ones every verification takes milliseconds."""

MAX_MEMBER_CHARS: Final = 1400
"""Most characters of a key's member: an RSA modulus of 8192 bits has 1,366. Numbers are made of it on the event loop."""

_PUBLIC: Final = ("kty", "crv", "n", "e", "x", "y", "alg")
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""Members of a public and of a private key (RFC 7518). From a private key PyJWT finds prime numbers, for seconds."""

MAX_EXPONENT_BITS: Final = 64
"""Most bits of an RSA key's public exponent, which is 65537 nearly always; verifying takes time in proportion to it."""


def key_set(document: dict[str, Any]) -> dict[str | None, PyJWK]:
    """Return key id → key for signatures; a key without an id under None.

    Keys for other uses, of other algorithms or of other sizes are left out; of two with one id the second one, too. Raises
    ValueError if the document is not a key set, holds too many keys, or none that can be used.
    """
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise ValueError("the key set has no list `keys`")  # noqa: TRY004  # of the document, not of the argument
    if len(keys) > MAX_KEYS:
        raise ValueError(f"the key set has {len(keys)} keys; at most {MAX_KEYS} are read")
    found: dict[str | None, PyJWK] = {}
    for fields in keys:
        if (key := _usable(fields)) is not None:
            found.setdefault(key.key_id, key)
    if not found:
        raise ValueError(f"the key set has no key for signatures by {', '.join(ALGORITHMS)}")
    return found


def _usable(fields: Any) -> PyJWK | None:
    if not isinstance(fields, dict) or fields.get("use", "sig") != "sig":
        return None
    operations, kid = fields.get("key_ops", ["verify"]), fields.get("kid")
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(kid, str | None):
        return None
    if not _PRIVATE.isdisjoint(fields) or not all(_is_short(fields.get(name, "")) for name in _PUBLIC):
        return None
    try:
        key = PyJWK({name: fields[name] for name in (*_PUBLIC, "kid") if name in fields})
    except (PyJWTError, ValueError, TypeError, AttributeError):  # the last two: members of other types than text
        return None
    return key if key.algorithm_name in ALGORITHMS and _fits(key.key) else None


def _is_short(member: Any) -> bool:
    return isinstance(member, str) and len(member) <= MAX_MEMBER_CHARS


def _fits(key: Any) -> bool:
    if not isinstance(key, RSAPublicKey):
        return not hasattr(key, "private_numbers") and not hasattr(key, "private_bytes")
    return key.key_size in RSA_BITS and key.public_numbers().e.bit_length() <= MAX_EXPONENT_BITS
