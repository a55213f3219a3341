"""Tokens: each forged, stale or misdirected one is refused, whatever it says of itself."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.access.issuer import Issuer
from app.access.issuer_client import IssuerClient
from app.access.tokens import MAX_TOKEN_CHARS, Tokens, is_token
from app.domain.errors import UNAUTHORIZED, Refused
from tests.support.issuer import AUDIENCE, OTHER_RSA_KEY, RSA_KEY, SimulatedIssuer, public

LEEWAY_S: Final = 30.0


@pytest_asyncio.fixture
async def tokens(issuer: SimulatedIssuer) -> AsyncIterator[Tokens]:
    client = IssuerClient()
    yield Tokens([Issuer(issuer.url, None, client)], {AUDIENCE, "another of ours"}, LEEWAY_S)
    await client.close()


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(issuer: SimulatedIssuer, **more: Any) -> dict[str, Any]:
    return {"iss": issuer.url, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 300, **more}


def by_hand(issuer: SimulatedIssuer, header: Any, secret: bytes | None = None, payload: Any = None) -> str:
    """A token as nobody's library makes it: with an HMAC by `secret`, or no signature at all."""
    signed = f"{part(header)}.{part(claims(issuer) if payload is None else payload)}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256')) if secret is not None else ''}"


def pem(issuer: SimulatedIssuer) -> bytes:
    """The issuer's public key, as everybody can know it."""
    return issuer.keys["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def with_key_of_its_own(issuer: SimulatedIssuer, **headers: Any) -> str:
    return issuer.token("rsa", key=OTHER_RSA_KEY, headers=headers)


def tampered(issuer: SimulatedIssuer) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{part(claims(issuer, sub='mallory', roles=['admin']))}.{signature}"


def flipped(issuer: SimulatedIssuer) -> str:
    token = issuer.token()
    return f"{token[:-10]}{'A' if token[-10] != 'A' else 'B'}{token[-9:]}"


def long_ago(issuer: SimulatedIssuer) -> str:
    return issuer.token(iat=int(time.time()) - 900, exp=int(time.time()) - int(LEEWAY_S) - 5)


Forge = Callable[[SimulatedIssuer], str]

SIGNED: Final[dict[str, Forge]] = {
    "T02_expired": long_ago,
    "T02_not_yet": lambda i: i.token(nbf=int(time.time()) + 120),
    "T02_issued_tomorrow": lambda i: i.token(iat=int(time.time()) + 86400),
    "T02_no_expiry": lambda i: i.token(exp=None),
    "T02_expiry_is_text": lambda i: i.token(exp="never"),
    "T02_expiry_is_infinite": lambda i: i.token(exp=float("inf")),
    "T02_expiry_is_a_list": lambda i: i.token(exp=[9e9]),
    "T02_another_audience": lambda i: i.token(aud="another gateway"),
    "T02_several_other_audiences": lambda i: i.token(aud=["a", "gateway "]),
    "T02_no_audience": lambda i: i.token(aud=None),
    "T02_empty_audience": lambda i: i.token(aud=[]),
    "T02_audience_is_an_object": lambda i: i.token(aud={AUDIENCE: True}),
    "T02_audience_of_other_types": lambda i: i.token(aud=[AUDIENCE, 1]),
    "T02_another_issuer": lambda i: i.token(iss="https://elsewhere.example"),
    "T02_issuer_with_a_slash": lambda i: i.token(iss=f"{i.url}/"),
    "T02_issuer_in_capitals": lambda i: i.token(iss=i.url.upper()),
    "T02_no_issuer": lambda i: i.token(iss=None),
    "T02_issuer_is_a_list": lambda i: by_hand(i, {"alg": "RS256", "kid": "rsa"}, b"x", claims(i, iss=[i.url])),
    "T02_no_subject": lambda i: i.token(sub=None),
    "T02_notice_of_a_sign_out": lambda i: i.token(headers={"typ": "logout+jwt"}),
    "T02_proof_of_possession": lambda i: i.token(headers={"typ": "dpop+jwt"}),
    "T02_event": lambda i: i.token(events={"http://schemas.openid.net/event/backchannel-logout": {}}),
    "T02_unknown_critical_header": lambda i: i.token(headers={"crit": ["x"], "x": 1}),
    "T02_weaker_hash": lambda i: i.token(algorithm="PS256"),
    "T02_key_of_nobody": lambda i: i.token("rsa", key=OTHER_RSA_KEY),
    "T02_unknown_key": lambda i: i.token(None, key=OTHER_RSA_KEY, headers={"kid": "unknown"}),
    "T02_no_key_id_among_several": lambda i: i.token(None, key=RSA_KEY),
    "T02_another_key_of_the_issuer": lambda i: i.token("ec", key=RSA_KEY, algorithm="RS256"),
    "T02_claims_exchanged": tampered,
    "T02_signature_with_one_letter_changed": flipped,
    "T02_signature_cut_off": lambda i: i.token().rpartition(".")[0] + ".",
    "T02_signature_of_another_token": lambda i: f"{i.token().rpartition('.')[0]}.{i.token(jti='x').rpartition('.')[2]}",
    "T02_too_long": lambda i: i.token(padding="x" * MAX_TOKEN_CHARS),
    "T02_padded": lambda i: i.token() + "=",
    "T02_two_parts": lambda i: i.token().rpartition(".")[0],
    "T02_five_parts": lambda i: f"{i.token()}.e30.e30",
    "T02_nested_deeply": lambda i: by_hand(i, b"[" * 5000, b"x"),
    "T02_claims_nested_deeply": lambda i: by_hand(i, {"alg": "RS256", "kid": "rsa"}, b"x", b"[" * 5000),
    "T02_header_is_a_list": lambda i: by_hand(i, ["alg", "RS256"], b"x"),
    "T02_claims_are_text": lambda i: by_hand(i, {"alg": "RS256", "kid": "rsa"}, b"x", b"hello"),
    "T02_number_of_thousands_of_digits": lambda i: by_hand(i, b'{"alg":' + b"9" * 5000 + b"}", b"x"),
    "T02_not_unicode": lambda i: by_hand(i, b"\xff\xfe{}", b"x"),
    "T02_key_id_is_a_number": lambda i: by_hand(i, {"alg": "RS256", "kid": 1}, b"x"),
    "T02_type_is_a_list": lambda i: by_hand(i, {"alg": "RS256", "typ": ["JWT"], "kid": "rsa"}, b"x"),
    "T03_none": lambda i: by_hand(i, {"alg": "none"}),
    "T03_none_with_key_id": lambda i: by_hand(i, {"alg": "none", "kid": "rsa"}),
    "T03_none_in_capitals": lambda i: by_hand(i, {"alg": "NoNe", "kid": "rsa"}),
    "T03_none_with_a_signature": lambda i: by_hand(i, {"alg": "none", "kid": "rsa"}, b"x"),
    "T03_no_algorithm": lambda i: by_hand(i, {"kid": "rsa"}, b"x"),
    "T03_algorithm_is_null": lambda i: by_hand(i, {"alg": None, "kid": "rsa"}, b"x"),
    "T03_algorithm_is_a_list": lambda i: by_hand(i, {"alg": ["RS256"], "kid": "rsa"}, b"x"),
    "T03_public_key_as_secret": lambda i: by_hand(i, {"alg": "HS256", "kid": "rsa"}, pem(i)),
    "T03_public_key_as_secret_under_rs256": lambda i: by_hand(i, {"alg": "RS256", "kid": "rsa"}, pem(i)),
    "T03_key_set_entry_as_secret": lambda i: by_hand(
        i, {"alg": "HS256", "kid": "rsa"}, json.dumps(public(i.keys["rsa"], "rsa")).encode()
    ),
    "T03_modulus_as_secret": lambda i: by_hand(
        i, {"alg": "HS256", "kid": "rsa"}, public(i.keys["rsa"], "rsa")["n"].encode()
    ),
    "T03_empty_secret": lambda i: by_hand(i, {"alg": "HS256", "kid": "rsa"}, b""),
    "T03_ec_key_under_rs256": lambda i: i.token("rsa", key=ec.generate_private_key(ec.SECP256R1())),
    "T03_rsa_key_under_es256": lambda i: i.token("ec", key=RSA_KEY),
    "T03_zeros_as_ecdsa_signature": lambda i: f"{i.token('ec').rpartition('.')[0]}.{part(bytes(64))}",
    "T03_zeros_as_eddsa_signature": lambda i: f"{i.token('ed').rpartition('.')[0]}.{part(bytes(64))}",
    "T03_jwk": lambda i: with_key_of_its_own(i, jwk=public(OTHER_RSA_KEY, "rsa")),
    "T03_jku": lambda i: with_key_of_its_own(i, jku=f"{i.url}/jwks?mine"),
    "T03_x5u": lambda i: with_key_of_its_own(i, x5u=f"{i.url}/chain"),
    "T03_x5c": lambda i: with_key_of_its_own(i, x5c=[base64.b64encode(b"certificate").decode()]),
    "T03_key_id_is_a_path": lambda i: i.token(None, key=OTHER_RSA_KEY, headers={"kid": "../../dev/null"}),
    "T03_key_id_is_an_address": lambda i: i.token(None, key=OTHER_RSA_KEY, headers={"kid": f"{i.url}/mine"}),
    "T03_detached": lambda i: i.token(headers={"b64": False, "crit": ["b64"]}),
}

WHY: Final[dict[str, str]] = {
    "the token has expired": "T02_expired",
    "the token is not valid yet": "T02_not_yet T02_issued_tomorrow",
    "lacks one of the claims": "T02_no_expiry T02_no_audience T02_empty_audience T02_no_subject",
    "a claim of the token is malformed": "T02_expiry_is_text T02_expiry_is_infinite T02_expiry_is_a_list",
    "for another audience": "T02_another_audience T02_several_other_audiences T02_audience_is_an_object "
    "T02_audience_of_other_types",
    "issuer is not one that this gateway trusts": "T02_another_issuer T02_issuer_with_a_slash T02_issuer_in_capitals "
    "T02_no_issuer T02_issuer_is_a_list",
    "of a type that is not for signing in": "T02_notice_of_a_sign_out T02_proof_of_possession T02_type_is_a_list",
    "tells of an event": "T02_event",
    "the token is malformed": "T02_unknown_critical_header T02_nested_deeply T02_claims_nested_deeply T02_header_is_a_list "
    "T02_claims_are_text T02_number_of_thousands_of_digits T02_not_unicode T02_key_id_is_a_number",
    "is malformed or has more than": "T02_too_long T02_padded T02_two_parts T02_five_parts T03_detached",
    "not signed with one of": "T02_weaker_hash T03_none T03_none_with_key_id T03_none_in_capitals "
    "T03_none_with_a_signature T03_no_algorithm T03_algorithm_is_null T03_algorithm_is_a_list T03_public_key_as_secret "
    "T03_key_set_entry_as_secret T03_modulus_as_secret T03_empty_secret",
    "not signed with the algorithm of its issuer's key": "T02_another_key_of_the_issuer T03_ec_key_under_rs256 "
    "T03_rsa_key_under_es256",
    "a key that its issuer does not have": "T02_unknown_key T02_no_key_id_among_several T03_key_id_is_a_path "
    "T03_key_id_is_an_address",
    "signature is wrong": "T02_key_of_nobody T02_claims_exchanged T02_signature_with_one_letter_changed "
    "T02_signature_cut_off T02_signature_of_another_token T03_public_key_as_secret_under_rs256 "
    "T03_zeros_as_ecdsa_signature T03_zeros_as_eddsa_signature T03_jwk T03_jku T03_x5u T03_x5c",
}
"""Reason → forgeries that are refused for it: one refused for another reason would not try what its name says."""

REASONS: Final = {name: why for why, names in WHY.items() for name in names.split()}


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.hostile
async def test_it_is_refused_for_what_is_wrong_with_it(tokens: Tokens, issuer: SimulatedIssuer, name: str) -> None:
    token = SIGNED[name](issuer)
    with pytest.raises(Refused) as caught:
        await tokens.verified(token)
    assert caught.value.code is UNAUTHORIZED
    assert REASONS[name] in caught.value.message
    assert ("has more than" in REASONS[name]) == ("has more than" in caught.value.message)
    assert len(caught.value.message) < 120
    for secret in token.split("."):
        assert len(secret) < 8 or secret not in f"{caught.value.message} {caught.value.hint}"
    assert {*issuer.asked} <= {"/.well-known/openid-configuration", "/jwks"}, "no address comes from a token"


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
async def test_each_algorithm_is_verified(tokens: Tokens, issuer: SimulatedIssuer, kid: str) -> None:
    found, told = await tokens.verified(issuer.token(kid))
    assert (found.url, told["sub"]) == (issuer.url, "alice")


@pytest.mark.parametrize(
    "more",
    [
        {"aud": ["x", "another of ours"]},
        {"exp": int(time.time()) + 9_000},
        {"nbf": int(time.time()) - 5},
        {"headers": {"typ": "at+jwt"}},
        {"headers": {"typ": None}},
        {"headers": {"jku": "https://elsewhere.example/jwks", "x5t": "x"}},
    ],
    ids="-".join,
)
async def test_what_is_right_passes(tokens: Tokens, issuer: SimulatedIssuer, more: dict[str, Any]) -> None:
    assert (await tokens.verified(issuer.token(**more)))[1]["sub"] == "alice"


async def test_clocks_may_differ_by_the_leeway(tokens: Tokens, issuer: SimulatedIssuer) -> None:
    now = int(time.time())
    late, early = now - int(LEEWAY_S) + 15, now + int(LEEWAY_S) - 5
    times: list[dict[str, Any]] = [{"exp": late}, {"nbf": early}, {"iat": early}]
    for more in times:
        assert await tokens.verified(issuer.token(**more))


async def test_a_set_of_one_key_needs_no_key_id(tokens: Tokens, issuer: SimulatedIssuer) -> None:
    issuer.keys = {None: RSA_KEY}
    assert await tokens.verified(issuer.token(None, key=RSA_KEY))
    with pytest.raises(Refused):
        await tokens.verified(issuer.token(None, key=OTHER_RSA_KEY))


async def test_two_issuers_vouch_for_themselves_only(issuer: SimulatedIssuer) -> None:
    """Equal key ids, and one issuer's key under the other's name."""
    other, client = SimulatedIssuer(), IssuerClient()
    other.keys = {"rsa": OTHER_RSA_KEY}
    tokens = Tokens([Issuer(one.url, None, client) for one in (issuer, other)], {AUDIENCE}, 0.0)
    try:
        for one in (issuer, other):
            assert (await tokens.verified(one.token()))[0].url == one.url
        with pytest.raises(Refused, match="signature"):
            await tokens.verified(other.token(iss=issuer.url))
    finally:
        await client.close()
        other.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("aaaa.bbbb.cccc", True), ("aaaa.bbbb.", True), ("lg_abc", False), ("a.b.c", False), ("aaaa.bbbb", False)],
)
def test_a_key_is_not_taken_for_a_token(text: str, expected: bool) -> None:
    assert is_token(text) is expected


def test_hashes_of_the_simulator_are_real(issuer: SimulatedIssuer) -> None:
    """The forged HMAC verifies under its secret: what refuses it is the gateway, not a mistake of the test's."""
    token = by_hand(issuer, {"alg": "HS256"}, hashlib.sha256(b"x").digest())
    assert jwt.decode(token, hashlib.sha256(b"x").digest(), ["HS256"], audience=AUDIENCE)["sub"] == "alice"
    assert isinstance(RSA_KEY, rsa.RSAPrivateKey)
