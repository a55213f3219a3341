"""Settings of single sign-on: OpenID Connect issuers, and what their tokens' claims mean."""

import re
from collections import defaultdict
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from app.access.issuer import plain_address
from app.domain.api_keys import Role
from app.domain.tenants import is_tenant
from app.server.settings.parts import comma_separated

_OWN: Final = re.compile(r"(?:([a-z0-9-]+)=)?(https?://.+)")

CALLBACK: Final = "/console/sign-in/oidc/callback"
"""Path to which an issuer sends a browser back."""


class SignOnSettings(BaseSettings):
    """Settings of single sign-on."""

    oidc_issuers: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="OpenID Connect issuers whose tokens are accepted beside keys, comma-separated, each exactly as its "
        "tokens and its metadata name it (https); acme=https://… : tokens of that issuer act in the tenant acme only",
    )
    oidc_audiences: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Accepted audiences (`aud`) of tokens, comma-separated; needed with oidc-issuers"
    )
    oidc_tenant_claim: str | None = Field(
        None,
        min_length=1,
        description="Claim that names the tenant in which a token's bearer acts; a token without it is refused; default: "
        "bearers act in the tenant `default`",
    )
    oidc_roles_claim: str = Field(
        "roles",
        min_length=1,
        description="Claim with the bearer's roles or groups, a list or a text (of scope: words); inside others: "
        "realm_access.roles",
    )
    oidc_roles: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Roles for values of that claim, as value=role, comma-separated, a value as often as it has roles; "
        "default: values are the names of roles",
    )
    oidc_leeway_seconds: float = Field(
        30.0, ge=0, le=300, description="Seconds by which an issuer's clock may differ from this one"
    )
    oidc_client_id: str | None = Field(
        None,
        min_length=1,
        description="Client id of the console at the first issuer, which is an accepted audience then; default: the "
        "console takes keys only",
    )
    oidc_client_secret: SecretStr | None = Field(
        None, description="The client's secret; default: a public client, protected by PKCE alone"
    )
    oidc_redirect_url: str | None = Field(
        None,
        description=f"Address of the console's callback as registered at the issuer: https://<gateway>{CALLBACK}; "
        "needed with oidc-client-id",
    )
    oidc_scopes: str = Field("openid", description="Scopes that the console asks for, with spaces between")

    _split_lists = field_validator("oidc_issuers", "oidc_audiences", "oidc_roles", mode="before")(comma_separated)

    @field_validator("oidc_issuers")
    @classmethod
    def _are_issuers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            found = _OWN.fullmatch(one)
            if found is None or not plain_address(found[2]) or (found[1] is not None and not is_tenant(found[1])):
                raise ValueError(
                    f"{one[:200]!r} is not an issuer such as https://sso.example.org or acme=https://sso.example.org; "
                    "http is accepted on this machine only"
                )
        urls = [url for _, url in _split(value)]
        if len(urls) != len(set(urls)):
            raise ValueError("an issuer stands there twice")
        return value

    @field_validator("oidc_roles")
    @classmethod
    def _are_roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            name, equals, role = one.rpartition("=")
            if not name or not equals or role not in set(Role):
                raise ValueError(f"{one[:80]!r} is not value=role; there are the roles {', '.join(sorted(Role))}")
        return value

    @field_validator("oidc_redirect_url")
    @classmethod
    def _is_callback(cls, value: str | None) -> str | None:
        if value is not None and not (plain_address(value) and urlsplit(value).path == CALLBACK):
            raise ValueError(f"oidc_redirect_url must be https://<gateway>{CALLBACK}; http on this machine only")
        return value

    @field_validator("oidc_scopes")
    @classmethod
    def _asks_for_an_id_token(cls, value: str) -> str:
        if "openid" not in value.split():
            raise ValueError("oidc_scopes must hold the scope openid: without it there is no ID token")
        return value

    @property
    def issuers(self) -> tuple[tuple[str | None, str], ...]:
        """Tenant of its own, if it has one, and URL of each issuer."""
        return _split(self.oidc_issuers)

    @property
    def claimed_roles(self) -> dict[str, frozenset[Role]]:
        """Value of the claim → roles."""
        found: defaultdict[str, frozenset[Role]] = defaultdict(frozenset)
        for one in self.oidc_roles or [f"{role.value}={role.value}" for role in Role]:
            name, _, role = one.rpartition("=")
            found[name] |= {Role(role)}
        return dict(found)

    def check_sign_on(self) -> None:
        """Raise ValueError if these settings contradict each other."""
        if bool(self.oidc_issuers) != bool(self.oidc_audiences or self.oidc_client_id):
            raise ValueError("oidc_issuers needs oidc_audiences or oidc_client_id, and these need oidc_issuers")
        if (self.oidc_client_id is None) != (self.oidc_redirect_url is None):
            raise ValueError("oidc_client_id and oidc_redirect_url are needed together")
        if self.oidc_client_secret is not None and self.oidc_client_id is None:
            raise ValueError("oidc_client_secret needs oidc_client_id")


def _split(value: tuple[str, ...]) -> tuple[tuple[str | None, str], ...]:
    found = (_OWN.fullmatch(one) for one in value)
    return tuple((one[1], one[2]) for one in found if one is not None)
