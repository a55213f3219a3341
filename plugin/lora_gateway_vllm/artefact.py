"""Artefact of one version, as the engine sees it: two files under one digest.

The digest is the gateway's own (SHA-256 over the lines `name NUL sha256 LF` of its files in the order of their names), so
nobody has to be believed: neither the network, nor the store, nor this machine's disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
CHUNK: Final = 1 << 20
"""Bytes read at a time."""

SHORT: Final = 12
"""Digits of the digest in an engine's name; numbers of versions have fewer."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADAPTER = r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?~)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""An adapter's name, after its tenant and `~` if it is a tenant's."""

_ENGINE_NAME = re.compile(rf"{_ADAPTER}@([0-9a-f]{{{SHORT}}})(?:-[0-9]{{1,9}})?")
_ASKED = re.compile(rf"{_ADAPTER}@[0-9a-f]{{1,{SHORT}}}(?:-[0-9]{{1,9}})?")


@dataclass(frozen=True)
class Artefact:
    """engine_name: `<adapter>@<digest12>`. digest: SHA-256 in hex. sizes: bytes of each file.

    statement: the signed envelope as the gateway answered it, unchecked (signed.py); None if there is none.
    """

    engine_name: str
    digest: str
    sizes: Mapping[str, int]
    statement: object = None

    @property
    def bytes(self) -> int:
        """Of both files."""
        return sum(self.sizes.values())


def may_exist(name: str) -> bool:
    """Return whether `name` can be a version's, by number or by digest. Plain names move, so they never are."""
    return _ASKED.fullmatch(name) is not None


def parse(told: object, asked: str) -> Artefact:
    """The gateway's answer about the name that was asked. Raises ValueError when it is not one that can be right."""
    if not isinstance(told, dict):
        raise ValueError("not an object")  # noqa: TRY004 - bad input, not a bug
    name, digest, sizes = told.get("engine_name"), told.get("digest"), told.get("bytes")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("no digest")
    match = _ENGINE_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[1] != digest[:SHORT]:
        raise ValueError("the engine's name is not that of the digest")
    wanted, _, version = asked.partition("@")
    if match[0].partition("@")[0].lower() != wanted.lower():
        raise ValueError("it is about another adapter")
    if len(version) >= SHORT and not digest.startswith(version[:SHORT]):
        raise ValueError("it is about other bytes than the name says")
    if not isinstance(sizes, dict) or set(sizes) != set(FILES):
        raise ValueError("other files than an adapter has")
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise ValueError("a size that is none")
    return Artefact(match[0], digest, sizes, told.get("statement"))


def digest_of(hashes: Mapping[str, str]) -> str:
    """The artefact's digest from the SHA-256 (hex) of each file."""
    lines = (f"{name}\0{hashes[name]}\n" for name in sorted(FILES))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    hashed = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
