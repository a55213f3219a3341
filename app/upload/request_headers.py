"""Request headers that describe an upload's body, checked before a byte of it is read."""

import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from app.domain.digest import Digest
from app.domain.errors import BAD_MULTIPART, DIGEST_MISMATCH, TOO_LARGE, UNSUPPORTED_ENCODING, Refused
from app.upload.limits import UploadLimits
from app.upload.multipart import boundary_of

DIGEST_HEADER: Final = "x-weights-sha256"
"""Optional request header: SHA-256 of the weights part in hex, checked against the bytes that arrived."""

_LENGTH = re.compile(r"[0-9]{1,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Announced:
    """Parsed headers. length: bytes of the body, None if chunked. digest: of the weights, in hex, None if not sent."""

    boundary: bytes
    length: int | None
    digest: str | None

    @classmethod
    def parse(cls, headers: Mapping[str, str], limits: UploadLimits) -> Self:
        """Parse and check headers. Raises Refused BAD_MULTIPART, TOO_LARGE, UNSUPPORTED_ENCODING or DIGEST_MISMATCH."""
        fields = _merged(headers.items())
        if fields.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refused(UNSUPPORTED_ENCODING, "the body has a Content-Encoding", param="content-encoding")
        length = fields.get("content-length")
        if length is not None and not _LENGTH.fullmatch(length):
            raise Refused(BAD_MULTIPART, "Content-Length is no number of bytes", param="content-length")
        if length is not None and int(length) > limits.max_body_bytes:
            raise Refused(
                TOO_LARGE, f"{length} bytes announced, the cap is {limits.max_body_bytes}", param="content-length"
            )
        digest = _digest_in(fields)
        return cls(boundary_of(fields.get("content-type")), None if length is None else int(length), digest)


def expected_digest(headers: Mapping[str, str]) -> str | None:
    """Return the SHA-256 that the weights must have, in hex; None if none is named. Raises Refused DIGEST_MISMATCH."""
    return _digest_in(_merged(headers.items()))


def check_digest(expected: str | None, found: Digest) -> None:
    """Raise Refused DIGEST_MISMATCH if the weights do not have the SHA-256 that the request named."""
    if expected is not None and not hmac.compare_digest(expected, found.hex):
        raise Refused(DIGEST_MISMATCH, f"the weights that arrived have {found}", param=DIGEST_HEADER)


def _digest_in(fields: Mapping[str, str]) -> str | None:
    digest = fields.get(DIGEST_HEADER)
    if digest is not None and not _SHA256.fullmatch(digest := digest.strip().lower()):
        raise Refused(DIGEST_MISMATCH, f"{DIGEST_HEADER} is no SHA-256 in hex", param=DIGEST_HEADER)
    return digest


def _merged(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by lower-case name, repeated ones joined (RFC 9110 §5.2), so that none is overlooked."""
    fields: dict[str, str] = {}
    for key, value in items:
        lower = key.lower()
        fields[lower] = f"{fields[lower]}, {value}" if lower in fields else value
    return fields
