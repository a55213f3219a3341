"""Identity rules: verified claims of a token → the Key that its bearer acts with. Pure.

The key's name comes from issuer and subject, in a form that logs, rate limits, usage and owners of adapters take. Its hash
keeps equal subjects of two issuers apart, and both from keys of that name.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.api_keys import BEARERS, OPERATOR_ROLES, Key, Role
from app.domain.errors import FORBIDDEN, UNAUTHORIZED, Refused
from app.domain.tenants import DEFAULT, is_tenant

SUBJECT_CHARS: Final = 37
"""Characters of a subject that its key's name shows; a UUID has 36."""

HASH_DIGITS: Final = 20
"""Hexadecimal digits of the hash: 80 bits, so that nobody finds a subject with another one's name."""

SCOPES: Final = frozenset({"scope", "scp"})
"""Claims whose text is a list of words (RFC 8693, section 4.2). Another claim's text may be a group called `Site admin`."""

_OTHERS = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """Rules that the operator sets. tenant_claim: claim with the tenant; None: every bearer acts in `default`, unless its
    issuer has a tenant of its own. roles_claim: claim with roles or groups. roles: its value → roles of the gateway.

    A claim inside another one is named with dots, `realm_access.roles`.
    """

    tenant_claim: str | None
    roles_claim: str
    roles: Mapping[str, frozenset[Role]]

    def key(self, issuer: str, tenant: str | None, claims: Mapping[str, Any]) -> Key:
        """Return the bearer's key; without a known role it may do nothing. tenant: the issuer's own, if it has one.

        Raises Refused FORBIDDEN if the token names no tenant, or one that is not the issuer's.
        """
        subject = claims["sub"]
        if not subject:
            raise Refused(UNAUTHORIZED, "the token's subject is empty")
        acts_in = self._tenant(tenant, claims)
        values = _texts(claim(claims, self.roles_claim), words=self.roles_claim in SCOPES)
        roles = frozenset(role for value in values for role in self.roles.get(value, ()))
        allowed = roles if acts_in == DEFAULT else roles - OPERATOR_ROLES
        return Key(name_of(issuer, subject), allowed, b"", tenant=acts_in)

    def _tenant(self, own: str | None, claims: Mapping[str, Any]) -> str:
        claimed = None if self.tenant_claim is None else claim(claims, self.tenant_claim)
        if isinstance(claimed, list) and len(claimed) == 1:
            claimed = claimed[0]
        if own is not None:
            if claimed is not None and claimed != own:
                raise _forbidden(f"the token names another tenant than its issuer's in the claim {self.tenant_claim!r}")
            return own
        if self.tenant_claim is None:
            return DEFAULT
        if not isinstance(claimed, str) or not is_tenant(claimed):
            raise _forbidden(f"the token does not name one tenant in the claim {self.tenant_claim!r}")
        return claimed


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its whole name or, with dots, from inside others; None if there is none."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def name_of(issuer: str, subject: str) -> str:
    """Return the name of a subject's key, fit for every place of a key's name: `oidc.<subject>.<hash>`."""
    text = f"{len(issuer)}:{issuer}{subject}"  # the length: no issuer and subject run together as another pair
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    shown = _OTHERS.sub("-", subject[: 2 * SUBJECT_CHARS])[:SUBJECT_CHARS]
    return f"{BEARERS}{shown}.{digest[:HASH_DIGITS]}"


def _texts(value: Any, *, words: bool) -> list[str]:
    """Return the values of a claim: a list's texts, or a text itself. words: of a text, those between its spaces."""
    if isinstance(value, str):
        return value.split() if words else [value]
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _forbidden(why: str) -> Refused:
    return Refused(FORBIDDEN, why, remedy="Ask the operator, or whoever runs the issuer, to correct the claim.")
