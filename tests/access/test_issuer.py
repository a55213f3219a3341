"""An issuer that rotates its keys, is away, slow, endless, or lies: bounded, and closed to tokens that need it."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
import pytest_asyncio

from app.access import issuer as module
from app.access import issuer_client
from app.access.issuer import REFETCH_S, REFRESH_S, STALE_S, Issuer, plain_address
from app.access.issuer_client import ANSWER_BYTES, FETCH_S, IssuerClient
from app.access.key_set import MAX_KEYS, key_set
from app.access.tokens import Tokens
from app.domain.errors import ISSUER_AWAY, UNAUTHORIZED, Refused, Unavailable
from tests.support.issuer import AUDIENCE, OTHER_RSA_KEY, RSA_KEY, SimulatedIssuer, new_key, public
from tests.support.waiting import until

FETCH: Final = ["/.well-known/openid-configuration", "/jwks"]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def trusted(issuer: SimulatedIssuer, clock: Clock) -> AsyncIterator[Issuer]:
    client = IssuerClient()
    made = Issuer(issuer.url, None, client, clock)
    yield made
    await made.stop()
    await client.close()


@pytest.fixture
def tokens(trusted: Issuer) -> Tokens:
    return Tokens([trusted], {AUDIENCE}, 0.0)


async def outcome(tokens: Tokens, token: str) -> str:
    try:
        await tokens.verified(token)
    except (Refused, Unavailable) as error:
        return error.code.name
    return "verified"


async def test_it_is_asked_once_for_many_tokens(tokens: Tokens, issuer: SimulatedIssuer) -> None:
    assert await asyncio.gather(*(outcome(tokens, issuer.token()) for _ in range(20))) == ["verified"] * 20
    assert issuer.asked == FETCH


async def test_made_up_key_ids_do_not_make_the_gateway_ask(
    tokens: Tokens, issuer: SimulatedIssuer, clock: Clock
) -> None:
    def stranger(number: int) -> str:
        return issuer.token(None, key=OTHER_RSA_KEY, headers={"kid": f"made-up-{number}"})

    found = await asyncio.gather(*(outcome(tokens, stranger(number)) for number in range(50)))
    assert {*found} == {UNAUTHORIZED.name}
    assert issuer.asked == FETCH
    clock.at += REFETCH_S
    assert await outcome(tokens, stranger(51)) == UNAUTHORIZED.name
    assert await outcome(tokens, stranger(52)) == UNAUTHORIZED.name
    assert issuer.asked == FETCH * 2


async def test_a_rotated_key_is_found_and_the_one_before_goes(
    tokens: Tokens, issuer: SimulatedIssuer, clock: Clock
) -> None:
    before = issuer.token()
    assert await outcome(tokens, before) == "verified"
    issuer.keys = {"new": new_key("ES256")}
    assert await outcome(tokens, issuer.token("new")) == UNAUTHORIZED.name, "too soon after the last fetch"
    clock.at += REFETCH_S
    assert await outcome(tokens, issuer.token("new")) == "verified"
    assert await outcome(tokens, before) == UNAUTHORIZED.name


async def test_it_is_asked_again_in_the_background(
    trusted: Issuer, tokens: Tokens, issuer: SimulatedIssuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was withdrawn ends without any unknown id."""
    monkeypatch.setattr(module, "REFRESH_S", 0.01)
    token = issuer.token()
    trusted.start()
    await until(lambda: issuer.asked == FETCH)
    await until(lambda: trusted._away is None)
    assert await outcome(tokens, token) == "verified"
    del issuer.keys["rsa"]
    clock.at += REFRESH_S
    await until(lambda: "rsa" not in trusted._keys)
    assert await outcome(tokens, token) == UNAUTHORIZED.name


def away(issuer: SimulatedIssuer) -> None:
    issuer.faults.away = True


def no_server(issuer: SimulatedIssuer) -> None:
    issuer.close()
    issuer.close = lambda: None  # type: ignore[method-assign]


def slow(issuer: SimulatedIssuer) -> None:
    issuer.faults.slow_s = 0.05


def large_metadata(issuer: SimulatedIssuer) -> None:
    issuer.faults.size = 10 << 20


def key_set_of(size: int) -> Callable[[SimulatedIssuer], None]:
    """A right key set that is too large."""

    def change(issuer: SimulatedIssuer) -> None:
        keys = [public(key, kid) for kid, key in issuer.keys.items()]
        issuer.faults.body = json.dumps({"keys": keys, "more": "x" * size}).encode()

    return change


def redirecting(issuer: SimulatedIssuer) -> None:
    issuer.faults.redirect = f"{issuer.url}/jwks"


def failing(issuer: SimulatedIssuer) -> None:
    issuer.faults.status = 500


def not_found(issuer: SimulatedIssuer) -> None:
    issuer.faults.status = 404


def compressed(issuer: SimulatedIssuer) -> None:
    issuer.faults.compressed = True


def body(content: bytes) -> Callable[[SimulatedIssuer], None]:
    def change(issuer: SimulatedIssuer) -> None:
        issuer.faults.body = content

    return change


def metadata(**members: Any) -> Callable[[SimulatedIssuer], None]:
    def change(issuer: SimulatedIssuer) -> None:
        issuer.faults.metadata = members

    return change


FAULTS: Final[dict[str, Callable[[SimulatedIssuer], None]]] = {
    "away": away,
    "no_server": no_server,
    "slow": slow,
    "ten_megabytes_of_metadata": large_metadata,
    "ten_megabytes_of_keys": key_set_of(10 << 20),
    "keys_a_little_too_large": key_set_of(ANSWER_BYTES),
    "redirecting": redirecting,
    "failing": failing,
    "not_found": not_found,
    "compressed": compressed,
    "not_json": body(b"<html>"),
    "nested_deeply": body(b"[" * 100_000),
    "a_list": body(b"[]"),
    "no_keys": body(b'{"keys": []}'),
    "keys_are_no_list": body(b'{"keys": {"a": 1}}'),
    "shared_secrets_only": body(b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "rsa", "alg": "HS256"}]}'),
    "too_many_keys": body(json.dumps({"keys": [public(RSA_KEY, str(n)) for n in range(MAX_KEYS + 1)]}).encode()),
    "another_issuers_metadata": metadata(issuer="https://elsewhere.example"),
    "no_issuer_in_the_metadata": metadata(issuer=None),
    "keys_without_tls": metadata(jwks_uri="http://elsewhere.example/jwks"),
    "keys_in_a_file": metadata(jwks_uri="file:///etc/passwd"),
    "keys_at_no_address": metadata(jwks_uri=["https://elsewhere.example"]),
    "port_beyond_all": metadata(jwks_uri="https://elsewhere.example:99999/jwks"),
    "methods_are_a_number": metadata(token_endpoint_auth_methods_supported=7, jwks_uri=None),
}


@pytest.mark.parametrize("break_it", FAULTS.values(), ids=FAULTS)
@pytest.mark.hostile("T04")
async def test_tokens_that_need_it_are_refused_in_time(
    tokens: Tokens,
    issuer: SimulatedIssuer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[SimulatedIssuer], None],
) -> None:
    monkeypatch.setattr(module, "FETCH_S", 0.5)
    monkeypatch.setattr(issuer_client, "FETCH_S", 0.5)
    token = issuer.token()
    break_it(issuer)
    began = time.monotonic()
    found = await asyncio.gather(*(outcome(tokens, token) for _ in range(10)))
    assert {*found} == {ISSUER_AWAY.name}
    assert time.monotonic() - began < 60, "a bound on a busy machine, not a measurement"
    asked = len(issuer.asked)
    assert asked <= 2
    with pytest.raises(Unavailable) as caught:
        await tokens.verified(token)
    assert caught.value.retry_after is not None
    assert 1 <= caught.value.retry_after <= REFETCH_S + 1
    assert len(issuer.asked) == asked, "not asked again so soon"
    clock.at += REFETCH_S
    assert await outcome(tokens, token) == ISSUER_AWAY.name


async def test_known_keys_go_on_for_an_hour_without_it(tokens: Tokens, issuer: SimulatedIssuer, clock: Clock) -> None:
    assert await outcome(tokens, issuer.token()) == "verified"
    issuer.faults.away = True
    fresh, unknown = issuer.token(), issuer.token(None, key=OTHER_RSA_KEY, headers={"kid": "unknown"})
    clock.at += STALE_S
    assert await outcome(tokens, fresh) == "verified"
    assert await outcome(tokens, unknown) == ISSUER_AWAY.name
    clock.at += 1
    assert await outcome(tokens, fresh) == ISSUER_AWAY.name
    issuer.faults.away = False
    clock.at += REFETCH_S
    assert await outcome(tokens, fresh) == "verified"


async def test_a_client_that_leaves_ends_no_fetch(tokens: Tokens, issuer: SimulatedIssuer) -> None:
    issuer.faults.held = threading.Event()
    leaves = asyncio.create_task(tokens.verified(issuer.token()))
    stays = asyncio.create_task(outcome(tokens, issuer.token()))
    await until(lambda: bool(issuer.asked))
    leaves.cancel()
    await until(leaves.done)
    issuer.faults.held.set()
    assert await stays == "verified"


def test_the_longest_wait_is_short() -> None:
    assert FETCH_S <= 5.0


def test_keys_that_are_not_for_signatures_are_left_out() -> None:
    ec, ed = new_key("ES256"), new_key("EdDSA")
    keys = [
        public(RSA_KEY, "rsa"),
        public(ec, "ec"),
        public(ed, "ed"),
        public(OTHER_RSA_KEY, "rsa"),
        public(RSA_KEY, "encrypts", use="enc"),
        public(RSA_KEY, "wraps", key_ops=["wrapKey"]),
        public(RSA_KEY, "weak hash", alg="RS1"),
        public(RSA_KEY, "secret", alg="HS256"),
        public(RSA_KEY, "crossed", alg="ES256"),
        public(ec, "other curve", crv="P-384"),
        public(RSA_KEY, "huge exponent", e="_" * 300),
        public(RSA_KEY, "small", n="_" * 171),
        public(RSA_KEY, "no number", n="!"),
        public(RSA_KEY, "of another type", n=17),
        {**public(RSA_KEY, None), "kid": 7},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {"kty": ["RSA"], "kid": "list"},
        {"kty": "EC", "crv": {}, "kid": "object"},
        {"kid": "nothing"},
        "text",
        None,
    ]
    found = key_set({"keys": keys})
    assert {*found} == {"rsa", "ec", "ed"}
    assert found["rsa"].key.public_numbers() == RSA_KEY.public_key().public_numbers()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("https://sso.example.org", True),
        ("https://sso.example.org:8443/realms/one", True),
        ("http://127.0.0.1:9000", True),
        ("http://localhost", True),
        ("http://sso.example.org", False),
        ("https://user@sso.example.org", False),
        ("https://sso.example.org?x", False),
        ("https://sso.example.org#x", False),
        ("https://", False),
        ("https://[::1", False),
        ("https://sso.example.org:x", False),
        ("ftp://sso.example.org", False),
    ],
)
def test_addresses_that_may_be_asked(url: str, right: bool) -> None:
    assert plain_address(url) is right


async def test_the_log_tells_once_that_it_is_away_and_that_it_is_back(
    tokens: Tokens, issuer: SimulatedIssuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(module, "event", lambda name, *_, **fields: told.append((name, fields.get("why"))))
    issuer.faults.status = 503
    for _ in range(3):
        assert await outcome(tokens, issuer.token()) == ISSUER_AWAY.name
        clock.at += REFETCH_S
    issuer.faults.status = 200
    assert await outcome(tokens, issuer.token()) == "verified"
    assert [name for name, _ in told] == ["issuer_away", "issuer"]
    assert "status 503" in told[0][1]


def test_private_keys_and_long_numbers_are_left_out_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a private exponent PyJWT finds prime numbers, on the event loop, which can take seconds."""
    monkeypatch.setattr("app.access.key_set.PyJWK", lambda _: pytest.fail("a key was made of it"))
    number = "A" * 1366
    hostile = [
        {"kty": "RSA", "alg": "RS256", "n": number, "e": "AQAB", "d": number},
        {"kty": "RSA", "alg": "RS256", "n": "A" * 2732, "e": "AQAB"},
        {"kty": "oct", "alg": "HS256", "k": number},
        {"kty": "RSA", "alg": "RS256", "n": 7, "e": "AQAB"},
    ]
    with pytest.raises(ValueError, match="no key"):
        key_set({"keys": hostile})


def test_an_issuer_with_tls_names_no_address_without() -> None:
    trusted = Issuer("https://sso.example.org", None, IssuerClient())
    document = {"issuer": trusted.url, "jwks_uri": "http://127.0.0.1:8001/keys"}
    with pytest.raises(ValueError, match="jwks_uri"):
        trusted._read(document)
    assert trusted._read(document | {"jwks_uri": "https://sso.example.org/keys"}).token is None
