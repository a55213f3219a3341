"""Names of adapters as people write them, and what they become inside.

Outside: `name` (its active version) or `name@3` (a version). Inside: `name@<digest12>`, the engine name, which no caller
may use. Names are resolved once, at the door.
"""

import re
from dataclasses import dataclass
from typing import Final

from app.domain.digest import Digest
from app.domain.errors import BAD_NAME, RESERVED_NAME, Refused

NAME_LIMIT: Final = 63
"""Characters; a DNS label's length, so that names fit Kubernetes labels and host names."""

RESERVED: Final = frozenset({"models", "health", "ready", "metrics", "base", "default", "docs", "screen", "adapters"})
"""Words that routes or operators use; an adapter of that name would confuse people, not code."""

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LIMIT - 1}}}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """A valid adapter name. Construct with `AdapterName.parse` for anything a stranger sent."""

    text: str

    @classmethod
    def parse(cls, text: str, served: frozenset[str] = frozenset()) -> "AdapterName":
        """Check a stranger's name. `served`: names the engine answers to itself.

        Raises Refused BAD_NAME or RESERVED_NAME.
        """
        if not _NAME.fullmatch(text):
            raise Refused(BAD_NAME, f"{text[:80]!r} is not a valid adapter name", param="name")
        if text.casefold() in RESERVED | {name.casefold() for name in served}:
            raise Refused(RESERVED_NAME, f"{text!r} is reserved", param="name")
        return cls(text)

    @property
    def key(self) -> str:
        """What must be unique: the name without regard to case."""
        return self.text.casefold()

    def __str__(self) -> str:
        return self.text


def engine_name(name: AdapterName, digest: Digest) -> str:
    """`<adapter>@<digest12>`: what the engine calls one version's bytes. Never accepted from a caller."""
    return f"{name.text}@{digest.short}"


def parse_model(text: str) -> tuple[str, int | None] | None:
    """Split what a caller put into `model`: (name, version or None), or None when it can name no adapter."""
    name, at, version = text.partition("@")
    if not _NAME.fullmatch(name):
        return None
    if not at:
        return name, None
    return (name, int(version)) if _VERSION.fullmatch(version) else None
