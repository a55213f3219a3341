"""Identity rules: tenant, roles and name of a token's bearer."""

import re
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.identity import IdentityRules, claim, name_of
from app.domain import api_keys
from app.domain.api_keys import Role
from app.domain.errors import FORBIDDEN, UNAUTHORIZED, Refused

ISSUER: Final = "https://sso.example.org"
BY_NAME: Final = {role.value: frozenset({role}) for role in Role}
RULES: Final = IdentityRules("tenant", "roles", BY_NAME)


def key(rules: IdentityRules = RULES, own: str | None = None, **claims: Any) -> api_keys.Key:
    return rules.key(ISSUER, own, {"sub": "alice", **claims})


def test_claims_name_tenant_and_roles() -> None:
    found = key(tenant="acme", roles=["upload", "chat", "something of another program"])
    assert found.tenant == "acme"
    assert found.roles == {Role.UPLOAD, Role.CHAT}
    assert key(tenant=["acme"], roles="chat").roles == {Role.CHAT}
    scopes = IdentityRules("tenant", "scope", BY_NAME)
    assert key(scopes, tenant="acme", scope="openid chat upload").roles == {Role.UPLOAD, Role.CHAT}


def test_only_the_default_tenant_has_operators() -> None:
    every = [role.value for role in Role]
    assert key(tenant="default", roles=every).operator
    theirs = key(tenant="acme", roles=every)
    assert not theirs.operator
    assert theirs.roles == {Role.ADMIN, Role.UPLOAD, Role.CHAT}


@pytest.mark.parametrize(
    "tenant",
    [None, "", "ACME", "acme/globex", "../acme", "acme globex", ["acme", "globex"], [], {"acme": 1}, 7, True, "a" * 64],
    ids=repr,
)
def test_a_token_without_a_tenant_is_refused(tenant: Any) -> None:
    """It must not act in `default` instead, whose administrators are the operators."""
    with pytest.raises(Refused) as caught:
        key(tenant=tenant, roles=["admin"])
    assert caught.value.code is FORBIDDEN


def test_without_a_claim_for_tenants_everybody_is_in_default() -> None:
    rules = IdentityRules(None, "roles", BY_NAME)
    assert key(rules, tenant="acme", roles="chat").tenant == "default"


def test_an_issuer_of_one_tenant_speaks_for_no_other() -> None:
    assert key(own="acme", roles="admin").tenant == "acme"
    assert key(own="acme", roles="admin", tenant="acme").tenant == "acme"
    for claimed in ("globex", "default", ["globex"], ["acme", "globex"], 7, ""):
        with pytest.raises(Refused) as caught:
            key(own="acme", roles="admin", tenant=claimed)
        assert caught.value.code is FORBIDDEN
    assert not key(IdentityRules(None, "roles", BY_NAME), own="acme", roles="admin", tenant="default").operator


@pytest.mark.parametrize(
    "roles",
    [
        None,
        [],
        "",
        "owner",
        "Site admin",
        "chat admin",
        "chat,admin",
        ["ADMIN", "Admin"],
        [["admin"]],
        {"admin": True},
        True,
        1,
    ],
)
def test_other_roles_are_none(roles: Any) -> None:
    assert key(tenant="acme", roles=roles).roles == frozenset()


def test_groups_are_mapped_to_roles_and_then_nothing_else_counts() -> None:
    rules = IdentityRules(None, "realm_access.groups", {"ml": frozenset({Role.UPLOAD, Role.CHAT})})
    assert key(rules, realm_access={"groups": ["/x", "ml"]}).roles == {Role.UPLOAD, Role.CHAT}
    assert key(rules, realm_access={"groups": ["admin"]}).roles == frozenset()
    assert key(rules, realm_access=["ml"]).roles == frozenset()


def test_a_claims_whole_name_comes_before_its_parts() -> None:
    claims = {"https://example.org/roles": ["chat"], "a.b": 1, "a": {"b": 2, "c": {"d": 3}}}
    assert claim(claims, "https://example.org/roles") == ["chat"]
    assert claim(claims, "a.b") == 1
    assert claim(claims, "a.c.d") == 3
    assert claim(claims, "a.c.d.e") is None


def test_names_fit_wherever_a_keys_name_stands() -> None:
    found = name_of(ISSUER, "auth0|5f7c8ec7c33c6c004bbafe82")
    assert found.startswith("oidc.auth0-5f7c8ec7c33c6c004bbafe82.")
    assert api_keys._NAME.fullmatch(name_of(ISSUER, "ü\n\r/../ \x00" * 1000))
    with pytest.raises(Refused) as caught:
        RULES.key(ISSUER, None, {"sub": "", "tenant": "acme"})
    assert caught.value.code is UNAUTHORIZED


def test_names_of_different_bearers_differ() -> None:
    pairs = [("https://a", "bc"), ("https://ab", "c"), ("https://a", "BC"), ("https://a", "b-c"), ("https://a", "b c")]
    assert len({name_of(*pair) for pair in pairs}) == len(pairs)


@given(st.text(), st.text())
def test_any_subject_has_a_name(issuer: str, subject: str) -> None:
    found = name_of(issuer, subject)
    assert api_keys._NAME.fullmatch(found)
    assert re.fullmatch(r"oidc\.[A-Za-z0-9_-]*\.[0-9a-f]{20}", found)


def test_no_key_has_the_name_of_a_bearer() -> None:
    with pytest.raises(ValueError, match=r"oidc\."):
        api_keys.new_key(name_of(ISSUER, "alice"), [Role.CHAT], tenant="acme")
