"""Tokens of an issuer that is not ours, as people get them and use them (tests/support/real_issuer.py)."""

from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from app.access.code_flow import Attempt
from app.access.sign_on import SignOn
from app.domain.errors import SIGN_IN_FAILED, Refused
from tests.support.gateway import OpenHouse, form

CALLBACK: Final = "http://127.0.0.1/console/sign-in/oidc/callback"
CLIENT: Final = "gateway-console"


@pytest.fixture
def settings(real_issuer: str) -> dict[str, Any]:
    return {
        "oidc_issuers": real_issuer,
        "oidc_tenant_claim": "tenant",
        "oidc_roles_claim": "groups",
        "oidc_roles": "ml=upload,ml=chat",
        "oidc_client_id": CLIENT,
        "oidc_client_secret": "a secret, with spaces: & signs",
        "oidc_redirect_url": CALLBACK,
    }


async def code_for(url: str, person: str) -> str:
    """The code that the issuer gives a person's browser."""
    async with httpx.AsyncClient() as browser:
        assert (await browser.get(url)).status_code == 200
        answer = await browser.post(url, data={"sub": person})
    assert answer.status_code == 302
    there = answer.headers["location"]
    assert there.startswith(f"{CALLBACK}?")
    return parse_qs(urlsplit(there).query)["code"][0]


async def signed_in(sign_on: SignOn | None, person: str) -> str:
    """The ID token of a person who signs in by code."""
    assert sign_on is not None
    assert sign_on.code_flow is not None
    attempt = Attempt.new()
    code = await code_for(await sign_on.code_flow.begin(attempt), person)
    return await sign_on.code_flow.finish(attempt, code, None)


async def test_its_people_use_the_api(open_gateway: OpenHouse, settings: dict[str, Any]) -> None:
    async with open_gateway(**settings) as running:

        async def ask(token: str, method: str, path: str, **sent: Any) -> httpx.Response:
            found: httpx.Response = await running.http.request(
                method, path, headers={"Authorization": f"Bearer {token}"}, **sent
            )
            return found

        sign_on = running.gateway.context.sign_on
        alice, bob, erin = [await signed_in(sign_on, who) for who in ("alice@acme.example", "bob", "erin")]
        assert (await ask(alice, "POST", "/adapters", files=form("sql"))).status_code == 201
        assert (await ask(alice, "GET", "/adapters/sql")).status_code == 200
        assert (await ask(bob, "GET", "/adapters/sql")).status_code == 404
        assert (await ask(erin, "GET", "/adapters/sql")).status_code == 403
        assert (await ask(f"{alice[:-8]}AAAAAAAA", "GET", "/adapters/sql")).status_code == 401


async def test_a_code_is_taken_once_and_for_its_own_attempt(open_gateway: OpenHouse, settings: dict[str, Any]) -> None:
    async with open_gateway(**settings) as running:
        flow = running.gateway.context.sign_on.code_flow
        attempt, other = Attempt.new(), Attempt.new()
        code = await code_for(await flow.begin(attempt), "bob")
        assert await flow.finish(attempt, code, None)
        with pytest.raises(Refused, match="invalid_grant") as caught:
            await flow.finish(attempt, code, None)
        assert caught.value.code is SIGN_IN_FAILED
        code = await code_for(await flow.begin(attempt), "alice@acme.example")
        with pytest.raises(Refused, match="nonce"):
            await flow.finish(other, code, None)
