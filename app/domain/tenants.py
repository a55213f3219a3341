"""Tenants: namespaces of adapters and keys. The tenant `acme` calls its adapter `sql`; the gateway calls it `acme/sql`.

The adapters of the tenant `default` have no prefix, in the gateway and outside. No plain name contains a slash, so the full
name alone tells whose an adapter is. The keys of `default` with the role `admin` are the operator's.
"""

import re
from dataclasses import dataclass
from typing import Final

DEFAULT: Final = "default"
"""Tenant of every key and adapter that names no other."""

SEPARATOR: Final = "/"
"""Character between a tenant and an adapter's plain name; neither contains it."""

TENANT_LIMIT: Final = 63
"""Most characters of a tenant's label: a DNS label's length, as of a Kubernetes namespace."""

_LABEL = re.compile(rf"[a-z0-9](?:[a-z0-9-]{{0,{TENANT_LIMIT - 2}}}[a-z0-9])?")


def is_tenant(label: str) -> bool:
    """Return whether `label` can be a tenant."""
    return _LABEL.fullmatch(label) is not None


def check_tenant(label: str) -> None:
    """Raise ValueError if `label` is not a valid tenant."""
    if not is_tenant(label):
        raise ValueError("a tenant is 1 to 63 of a-z 0-9 - and begins and ends with a letter or digit")


def full_name(tenant: str, plain: str) -> str:
    """Return the gateway's name of a tenant's adapter."""
    return plain if tenant == DEFAULT else f"{tenant}{SEPARATOR}{plain}"


def split_name(full: str) -> tuple[str, str]:
    """Return the tenant and the plain name of an adapter."""
    tenant, slash, plain = full.rpartition(SEPARATOR)
    return (tenant, plain) if slash else (DEFAULT, plain)


@dataclass(frozen=True, slots=True)
class Reach:
    """Adapters that a caller can name. tenant: its own, by plain names. every: all others' too, as `tenant/name`."""

    tenant: str = DEFAULT
    every: bool = False

    def full(self, asked: str) -> str | None:
        """Return the gateway's name of what a request calls `asked`; None if the caller cannot name it."""
        if SEPARATOR in asked:
            return asked if self.every else None
        return full_name(self.tenant, asked)

    def shown(self, full: str) -> str | None:
        """Return the caller's name of an adapter; None if it is not to be shown."""
        tenant, plain = split_name(full)
        if tenant == self.tenant:
            return plain
        return full if self.every and self.tenant == DEFAULT else None


EVERYTHING: Final = Reach(every=True)
"""Reach of the operator, and of the gateway itself."""
