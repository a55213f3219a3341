"""SHA-256 digests as values, so that a digest is never confused with any other string."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SHORT: Final = 12
"""Hex characters of a digest shown in engine names: 48 bits, ample for one store, short enough to read."""

_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 in lower-case hex (64 characters)."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.hex):
            raise ValueError(f"not a sha256 in lower-case hex: {self.hex[:80]!r}")

    @property
    def short(self) -> str:
        """The first 12 characters."""
        return self.hex[:SHORT]

    def __str__(self) -> str:
        return self.hex


def digest_of(data: bytes | memoryview) -> Digest:
    """Return the SHA-256 of one byte string."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_of_parts(parts: Iterable[tuple[str, Digest]]) -> Digest:
    """Return one digest over named parts: SHA-256 of `name NUL hex LF` lines, sorted by name."""
    lines = (f"{name}\0{digest.hex}\n" for name, digest in sorted(parts))
    return digest_of("".join(lines).encode())
