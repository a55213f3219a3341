"""Authorisation code flow: its address, PKCE, and every answer that does not belong to the attempt."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
import pytest_asyncio

from app.access.code_flow import EXCHANGES, MAX_CODE_CHARS, Attempt, CodeFlow, Registration
from app.access.issuer import Issuer
from app.access.issuer_client import IssuerClient
from app.access.tokens import Tokens
from app.domain.errors import ISSUER_AWAY, SIGN_IN_FAILED, GatewayError, Refused, Unavailable
from tests.support.issuer import AUDIENCE, CLIENT, OTHER_RSA_KEY, SimulatedIssuer
from tests.support.waiting import until

CALLBACK: Final = "https://gateway.example.org/console/sign-in/oidc/callback"


@pytest_asyncio.fixture
async def client() -> AsyncIterator[IssuerClient]:
    made = IssuerClient()
    yield made
    await made.close()


def flow_at(issuer: SimulatedIssuer, client: IssuerClient, secret: str | None = None) -> CodeFlow:
    trusted = Issuer(issuer.url, None, client)
    return CodeFlow(
        trusted, Tokens([trusted], {AUDIENCE, CLIENT}, 0.0), client, Registration(CLIENT, secret, CALLBACK, "openid")
    )


@pytest.fixture
def flow(issuer: SimulatedIssuer, client: IssuerClient) -> CodeFlow:
    return flow_at(issuer, client)


async def code_for(url: str) -> str:
    """The code with which the issuer sends the browser back."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(url)
    return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]


async def failed(flow: CodeFlow, attempt: Attempt, code: str, issuer: str | None = None) -> str:
    with pytest.raises(Refused) as caught:
        await flow.finish(attempt, code, issuer)
    assert caught.value.code is SIGN_IN_FAILED
    return caught.value.message


async def test_the_address_has_what_binds_the_answer(flow: CodeFlow, issuer: SimulatedIssuer) -> None:
    attempt = Attempt.new()
    url = await flow.begin(attempt)
    assert url.startswith(f"{issuer.url}/authorize?")
    assert dict(parse_qsl(urlsplit(url).query)) == {
        "response_type": "code",
        "client_id": CLIENT,
        "redirect_uri": CALLBACK,
        "scope": "openid",
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": attempt.challenge,
        "code_challenge_method": "S256",
    }
    assert attempt.verifier not in url
    assert len({*(one for _ in range(50) for one in (Attempt.new().state, Attempt.new().verifier))}) == 100


def test_the_challenge_is_that_of_the_standard() -> None:
    """RFC 7636, appendix B."""
    attempt = Attempt("s", "n", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert attempt.challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


async def test_a_public_client_signs_in_with_pkce_alone(flow: CodeFlow, issuer: SimulatedIssuer) -> None:
    attempt = Attempt.new()
    token = await flow.finish(attempt, await code_for(await flow.begin(attempt)), issuer.url)
    assert token.count(".") == 2
    assert issuer.authorization is None
    assert issuer.forms[0]["client_id"] == CLIENT
    assert issuer.forms[0]["redirect_uri"] == CALLBACK
    assert issuer.forms[0]["code_verifier"] == attempt.verifier


@pytest.mark.parametrize(
    ("methods", "in_form"),
    [(None, False), (["client_secret_post", "client_secret_basic"], False), (["client_secret_post"], True)],
    ids=str,
)
async def test_a_secret_is_sent_as_the_issuer_takes_it(
    issuer: SimulatedIssuer, client: IssuerClient, methods: Any, in_form: bool
) -> None:
    issuer.faults.metadata = {} if methods is None else {"token_endpoint_auth_methods_supported": methods}
    flow, attempt = flow_at(issuer, client, "a secret"), Attempt.new()
    await flow.finish(attempt, await code_for(await flow.begin(attempt)), None)
    assert ("client_secret" in issuer.forms[0]) is in_form
    assert issuer.authorization == (None if in_form else httpx.BasicAuth(CLIENT, "a+secret")._auth_header)


@pytest.mark.hostile("T05")
async def test_a_code_is_of_no_use_without_its_verifier(flow: CodeFlow) -> None:
    """A code that was stolen on its way back."""
    theirs, mine = Attempt.new(), Attempt.new()
    stolen = await code_for(await flow.begin(theirs))
    assert "invalid_grant" in await failed(flow, Attempt(theirs.state, theirs.nonce, mine.verifier), stolen)


@pytest.mark.hostile("T05")
async def test_a_code_of_another_attempt_brings_another_nonce(flow: CodeFlow) -> None:
    """Somebody else's code, to sign a person in under a foreign name."""
    theirs = Attempt.new()
    code = await code_for(await flow.begin(theirs))
    assert "nonce" in await failed(flow, Attempt(theirs.state, Attempt.new().nonce, theirs.verifier), code)


@pytest.mark.parametrize("code", ["", "made-up", "x" * (MAX_CODE_CHARS + 1)], ids=["none", "made-up", "long"])
@pytest.mark.hostile("T05")
async def test_codes_that_are_none(flow: CodeFlow, code: str) -> None:
    await failed(flow, Attempt.new(), code)


@pytest.mark.hostile("T05")
async def test_an_answer_of_another_issuer(flow: CodeFlow, issuer: SimulatedIssuer) -> None:
    attempt = Attempt.new()
    code = await code_for(await flow.begin(attempt))
    assert "another issuer" in await failed(flow, attempt, code, "https://elsewhere.example")
    assert issuer.forms == [], "the code was sent nowhere"


@pytest.mark.parametrize(
    "wrong",
    [
        {"aud": AUDIENCE},
        {"aud": [CLIENT], "azp": "another party"},
        {"exp": 1},
        {"iss": "https://elsewhere.example"},
        {"nonce": None},
        {"nonce": 7},
        {"key": OTHER_RSA_KEY},
    ],
    ids=["audience", "party", "expired", "issuer", "no nonce", "another nonce", "another key"],
)
@pytest.mark.hostile("T05")
async def test_an_id_token_that_is_not_for_this_attempt(
    flow: CodeFlow, issuer: SimulatedIssuer, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    attempt = Attempt.new()
    code = await code_for(await flow.begin(attempt))
    token = issuer.token(**{"aud": CLIENT, "nonce": attempt.nonce, **wrong})
    monkeypatch.setattr(issuer, "exchange", lambda _: (200, {"id_token": token}))
    await failed(flow, attempt, code)


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, {}), (200, {"id_token": 7}), (200, {"access_token": "x"}), (400, {"error": ["x"] * 999}), (401, {})],
    ids=["nothing", "a number", "an access token", "a long error", "refused"],
)
async def test_an_answer_without_an_id_token(
    flow: CodeFlow, issuer: SimulatedIssuer, monkeypatch: pytest.MonkeyPatch, status: int, answer: dict[str, Any]
) -> None:
    attempt = Attempt.new()
    code = await code_for(await flow.begin(attempt))
    monkeypatch.setattr(issuer, "exchange", lambda _: (status, answer))
    assert len(await failed(flow, attempt, code)) < 200


@pytest.mark.parametrize("fault", ["away", "failing", "redirecting", "large"])
@pytest.mark.hostile("T04")
async def test_an_issuer_that_breaks_meanwhile(flow: CodeFlow, issuer: SimulatedIssuer, fault: str) -> None:
    attempt = Attempt.new()
    code = await code_for(await flow.begin(attempt))
    issuer.faults.away = fault == "away"
    issuer.faults.status = 503 if fault == "failing" else 200
    issuer.faults.redirect = "https://elsewhere.example/token" if fault == "redirecting" else None
    issuer.faults.size = 10 << 20 if fault == "large" else 0
    with pytest.raises(Unavailable) as caught:
        await flow.finish(attempt, code, None)
    assert caught.value.code is ISSUER_AWAY


@pytest.mark.parametrize("missing", ["authorization_endpoint", "token_endpoint"])
async def test_an_issuer_without_a_code_flow(
    issuer: SimulatedIssuer, client: IssuerClient, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    right = issuer.answer

    def answer(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = right(path, query)
        return status, headers, body.replace(missing.encode(), b"left_out")

    monkeypatch.setattr(issuer, "answer", answer)
    with pytest.raises(Unavailable, match="endpoints"):
        await flow_at(issuer, client).begin(Attempt.new())


@pytest.mark.hostile("T04")
async def test_made_up_codes_occupy_a_few_connections(flow: CodeFlow, issuer: SimulatedIssuer) -> None:
    await flow.begin(Attempt.new())
    issuer.faults.held = threading.Event()
    outcomes: list[str] = []

    async def stranger() -> None:
        try:
            await flow.finish(Attempt.new(), "made-up", None)
        except GatewayError as error:
            outcomes.append(error.code.name)

    tasks = [asyncio.create_task(stranger()) for _ in range(3 * EXCHANGES)]
    await until(lambda: len(outcomes) >= 2 * EXCHANGES)
    assert {*outcomes} == {ISSUER_AWAY.name}
    assert len(issuer.forms) <= EXCHANGES
    issuer.faults.held.set()
    await asyncio.gather(*tasks)
    assert outcomes.count(SIGN_IN_FAILED.name) <= EXCHANGES
