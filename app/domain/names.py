"""Adapter names: the names callers use and the names engines use.

Callers: `name` (its active version) or `name@3` (a version). Engines: `name@<digest12>`, and `tenant~name@<digest12>` for a
tenant's adapter, which no caller may use. A request's name is resolved once, when the request arrives.
"""

import re
from dataclasses import dataclass
from typing import Final

from app.domain.digest import Digest
from app.domain.errors import BAD_NAME, RESERVED_NAME, Refused
from app.domain.tenants import DEFAULT, SEPARATOR, TENANT_LIMIT, full_name, is_tenant, split_name

NAME_LIMIT: Final = 63
"""Most characters of a name: a DNS label's length, so that names fit Kubernetes labels and host names."""

FULL_NAME_LIMIT: Final = TENANT_LIMIT + 1 + NAME_LIMIT
"""Most characters of a name with its tenant."""

IN_ENGINES: Final = "~"
"""Separator of tenant and name in an engine's name: a slash would end a part of the path of an address."""

RESERVED: Final = frozenset({"models", "health", "ready", "metrics", "base", "default", "docs", "screen", "adapters"})
"""Words used by routes and operators; an adapter of such a name would confuse people, not code."""

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LIMIT - 1}}}")
VERSION_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
MAX_NUMBER: Final = 999_999_999
"""Form of a version number, and the largest one."""


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """A valid adapter name, with its tenant. Use `AdapterName.parse` for untrusted input."""

    text: str

    @classmethod
    def parse(cls, text: str, served: frozenset[str] = frozenset(), tenant: str = DEFAULT) -> "AdapterName":
        """Parse an untrusted plain name of a valid tenant's. `served`: names of the served model itself.

        Raises Refused BAD_NAME or RESERVED_NAME.
        """
        if not _NAME.fullmatch(text):
            raise Refused(BAD_NAME, f"{text[:80]!r} is not a valid adapter name", param="name")
        full = full_name(tenant, text)
        if {text.casefold(), full.casefold()} & (RESERVED | {name.casefold() for name in served}):
            raise Refused(RESERVED_NAME, f"{text!r} is reserved", param="name")
        return cls(full)

    @property
    def tenant(self) -> str:
        """The tenant whose adapter this is."""
        return split_name(self.text)[0]

    @property
    def plain(self) -> str:
        """The name without its tenant, as the tenant's own callers use it."""
        return split_name(self.text)[1]

    @property
    def key(self) -> str:
        """The name in folded case, which must be unique."""
        return self.text.casefold()

    def __str__(self) -> str:
        return self.text


def in_engines(full: str) -> str:
    """Return the part of an engine's name that stands for an adapter."""
    return full.replace(SEPARATOR, IN_ENGINES)


def engine_name(name: AdapterName, digest: Digest) -> str:
    """Return the engine's name for one version's bytes: `<adapter>@<digest12>`. Never accepted from a caller."""
    return f"{in_engines(name.text)}@{digest.short}"


def parse_model(text: str) -> tuple[str, int | None] | None:
    """Split a model's full name into (name, version or None); return None if it cannot name an adapter."""
    name, at, version = text.partition("@")
    tenant, plain = split_name(name)
    if not _NAME.fullmatch(plain) or not is_tenant(tenant):
        return None
    if not at:
        return name, None
    return (name, int(version)) if VERSION_NUMBER.fullmatch(version) else None
