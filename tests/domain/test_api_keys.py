"""API keys as they are stored."""

import hashlib

import pytest

from app.domain.api_keys import (
    MIN_KEY_CHARS,
    PREFIX,
    Key,
    Role,
    Uploader,
    digest_of_key,
    key_for_all,
    new_key,
    parse_keys,
)
from app.domain.tenants import DEFAULT

DIGEST = "sha256:" + "ab" * 32


def test_a_new_key_is_random_and_its_line_reads_back() -> None:
    made = [new_key("ci", [Role.UPLOAD, Role.CHAT]) for _ in range(50)]
    assert len({key for key, _ in made}) == 50
    for key, stored in made:
        assert key.startswith(PREFIX)
        assert len(key) >= len(PREFIX) + 43  # 256 bits in base64
        assert key not in stored.line
        assert stored.digest == hashlib.sha256(key.encode()).digest()
        assert parse_keys(f"# a comment\n\n{stored.line}\n") == (stored,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ci", "line 1: must read"),
        (f"ci upload {DIGEST} more", "line 1: must read"),
        (f"ci upload {DIGEST} team=x", "line 1: must read"),
        (f"ci upload {DIGEST} owner=", "line 1: an owner's label"),
        (f"ci upload {DIGEST} owner=../x", "line 1: an owner's label"),
        (f"ci upload {DIGEST.upper()}", "line 1: must read"),
        (f"ci upload sha256:{'ab' * 31}", "line 1: must read"),
        ("ci upload a-plain-key-is-no-digest", "line 1: must read"),
        (f"\nci root {DIGEST}", "line 2: no such role: 'root'"),
        (f"ci upload, {DIGEST}", "line 1: no such role: ''"),
        (f"../ci upload {DIGEST}", "line 1: a key's name"),
        (f"a upload {DIGEST}\nb chat {DIGEST}", "line 2: b or its key stands there twice"),
        (f"a upload {DIGEST}\na chat sha256:{'cd' * 32}", "line 2: a or its key stands there twice"),
    ],
    ids=range(13),
)
def test_a_file_that_cannot_be_meant_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_keys(text)


def test_a_key_somebody_thought_up_must_be_long() -> None:
    assert key_for_all("x" * MIN_KEY_CHARS, 1).roles == frozenset(Role)
    with pytest.raises(ValueError, match="16 characters"):
        key_for_all("x" * (MIN_KEY_CHARS - 1), 1)


def test_admin_may_everything_and_others_what_they_say() -> None:
    def key(*roles: Role) -> Key:
        return Key("k", frozenset(roles), b"")

    for role in Role:
        assert key(Role.ADMIN).may(frozenset({role}))
        assert key(role).may(frozenset({role, Role.CHAT}))
    assert not key(Role.UPLOAD, Role.CHAT, Role.METRICS).may(frozenset())
    assert not key(Role.UPLOAD).may(frozenset({Role.CHAT}))


@pytest.mark.parametrize("key", ["", "\ud800", "\0", "é" * 10_000])
def test_anything_offered_as_a_key_has_a_digest(key: str) -> None:
    assert len(digest_of_key(key)) == 32


def test_keys_of_one_label_have_one_owner_and_others_own_what_they_make_themselves() -> None:
    _, one = new_key("ci", [Role.UPLOAD], owner="team")
    _, other = new_key("team", [Role.UPLOAD])
    _, admin = new_key("ops", [Role.ADMIN])
    assert parse_keys(f"{one.line}\n{other.line}") == (one, other)
    assert one.uploader(DEFAULT) == other.uploader(DEFAULT) == Uploader("team")
    assert admin.uploader(DEFAULT) == Uploader("ops", admin=True)
    with pytest.raises(ValueError, match="owner's label"):
        new_key("ci", [Role.UPLOAD], owner="a b")


def test_a_tenant_stands_in_the_keys_line_and_its_keys_are_not_the_operators() -> None:
    _, acme = new_key("ci", [Role.ADMIN], owner="team", tenant="acme")
    assert acme.line.endswith(" owner=team tenant=acme")
    assert parse_keys(acme.line) == parse_keys(acme.line.replace("owner=team tenant=acme", "tenant=acme owner=team"))
    assert parse_keys(acme.line) == (acme,)
    assert not acme.operator
    assert acme.uploader("acme") == Uploader("team", admin=True, tenant="acme")
    _, operator = new_key("ops", [Role.ADMIN])
    assert operator.operator
    assert operator.uploader("acme") == Uploader(None, admin=True, tenant="acme"), "any key of acme may push to it"


@pytest.mark.parametrize("tenant", ["", "Acme", "a_b", "a/b", "-a", "a-", "a" * 64, "ä", "a b", "a\n"])
def test_a_tenant_is_a_dns_label(tenant: str) -> None:
    with pytest.raises(ValueError, match="a tenant is 1 to 63"):
        new_key("ci", [Role.CHAT], tenant=tenant)


@pytest.mark.parametrize("role", [Role.METRICS, Role.ENGINE])
def test_roles_that_concern_every_tenant_are_for_the_operators_keys(role: Role) -> None:
    with pytest.raises(ValueError, match=f"cannot have the role {role}"):
        new_key("ci", [Role.CHAT, role], tenant="acme")


@pytest.mark.parametrize("label", ["owner=a owner=b", "tenant=a tenant=b", "team=a", "tenant", "tenant=acme x"])
def test_labels_stand_once_and_are_known(label: str) -> None:
    _, key = new_key("ci", [Role.CHAT])
    with pytest.raises(ValueError, match=r"line 1: (must read|a tenant is)"):
        parse_keys(f"{key.line} {label}")
