"""Bearers of tokens through the whole gateway: who they are, what they reach, and what is recorded of them."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from pydantic import ValidationError

from app.access.identity import name_of
from app.domain.api_keys import Role, new_key
from app.server.settings import Settings
from app.server.settings.in_force import settings_in_force
from tests.access.test_tokens import SIGNED
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.issuer import AUDIENCE, CLIENT, OTHER_RSA_KEY, SimulatedIssuer
from tests.support.waiting import until

CHAT: Final = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> AsyncIterator[Running]:
    async with open_gateway(oidc_issuers=issuer.url, oidc_audiences=AUDIENCE, oidc_tenant_claim="tenant") as made:
        yield made


async def ask(running: Running, token: str, method: str, path: str, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {token}"}, **sent)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_bearer_acts_in_its_tenant_and_is_recorded_by_its_subject(
    running: Running, issuer: SimulatedIssuer
) -> None:
    alice = issuer.token("ed", tenant="acme")
    boss = issuer.token("ec", tenant="acme", sub="boss", roles=["admin"])
    name = name_of(issuer.url, "alice")
    pushed = await ask(running, alice, "POST", "/adapters", files=form("sql"))
    assert (pushed.status_code, pushed.json()["model"]) == (201, "sql@1")
    assert (await ask(running, boss, "GET", "/adapters/sql")).json()["owner"] == name
    assert (await ask(running, alice, "POST", "/v1/chat/completions", json=CHAT)).status_code == 200
    acts = (await ask(running, boss, "GET", "/audit")).json()["entries"]
    assert [(one["key"], one["action"]) for one in acts] == [(f"acme/{name}", "POST /adapters")]
    used = (await ask(running, boss, "GET", "/usage")).json()
    assert [row["key"] for row in used["usage"]] == [name]
    later = issuer.token("rsa", tenant="acme", jti="another token of the same person")
    assert (await ask(running, later, "POST", "/adapters", files=form("sql", 1))).status_code == 201
    other = issuer.token("rsa", tenant="acme", sub="carol")
    assert code(await ask(running, other, "POST", "/adapters", files=form("sql", 2))) == (409, "name_taken")


@pytest.mark.hostile("T01")
async def test_another_tenants_names_are_nobodys(running: Running, issuer: SimulatedIssuer) -> None:
    theirs, mine = issuer.token(tenant="globex"), issuer.token(tenant="acme", roles=["admin"])
    assert (await ask(running, theirs, "POST", "/adapters", files=form("theirs"))).status_code == 201
    for name in ("theirs", "nobody", "globex%2Ftheirs"):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rollback"), ("GET", "/versions/1")):
            assert (await ask(running, mine, method, f"/adapters/{name}{path}")).status_code == 404
    for model in ("theirs", "theirs@1", "globex/theirs"):
        answer = await ask(running, mine, "POST", "/v1/chat/completions", json={**CHAT, "model": model})
        assert code(answer) == (404, "model_not_found")
    assert (await ask(running, mine, "GET", "/adapters")).json()["adapters"] == []
    for tenant in ("globex", "default", "nobody"):
        assert code(await ask(running, mine, "GET", "/adapters", params={"tenant": tenant})) == (403, "forbidden")
        assert code(await ask(running, mine, "GET", f"/tenants/{tenant}/keys")) == (403, "forbidden")
    for path in ("/tenants", "/metrics", "/console/settings"):
        assert (await ask(running, mine, "GET", path)).status_code == 403


async def test_a_name_is_no_keys_name_and_no_other_issuers(
    open_gateway: OpenHouse, issuer: SimulatedIssuer, tmp_path: Path
) -> None:
    """Adapters belong to owners, who are named as their keys: `alice` by key, by one issuer and by another."""
    other, file = SimulatedIssuer(), tmp_path / "keys"
    alice, stored = new_key("alice", [Role.UPLOAD])
    file.write_text(stored.line)
    try:
        both = f"{issuer.url}, {other.url}"
        async with open_gateway(oidc_issuers=both, oidc_audiences=AUDIENCE, api_keys_file=file) as running:
            assert (await ask(running, alice, "POST", "/adapters", files=form("sql"))).status_code == 201
            for token in (issuer.token(), other.token()):
                assert code(await ask(running, token, "POST", "/adapters", files=form("sql"))) == (409, "name_taken")
    finally:
        other.close()


async def test_an_issuer_of_one_tenant_reaches_no_other(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> None:
    own = f"acme={issuer.url}"
    async with open_gateway(oidc_issuers=own, oidc_audiences=AUDIENCE, oidc_tenant_claim="tenant") as running:
        admin = issuer.token(roles=["admin"])
        assert (await ask(running, admin, "GET", "/tenants/acme/keys")).status_code == 200
        assert (await ask(running, admin, "GET", "/tenants")).status_code == 403
        for tenant in ("globex", "default"):
            token = issuer.token(roles=["admin"], tenant=tenant)
            assert code(await ask(running, token, "GET", "/adapters")) == (403, "forbidden")


async def test_roles_are_those_of_the_token(running: Running, issuer: SimulatedIssuer) -> None:
    chats = issuer.token(tenant="acme", roles=["chat"])
    assert (await ask(running, chats, "GET", "/v1/models")).status_code == 200
    assert code(await ask(running, chats, "GET", "/adapters")) == (403, "forbidden")
    assert code(await ask(running, issuer.token(tenant="acme", roles=None), "GET", "/v1/models")) == (403, "forbidden")
    assert code(await ask(running, issuer.token(roles=["admin"]), "GET", "/v1/models")) == (403, "forbidden")
    operator = issuer.token(tenant="default", roles=["admin"])
    assert (await ask(running, operator, "GET", "/tenants")).status_code == 200
    assert (await ask(running, operator, "GET", "/adapters", params={"tenant": "acme"})).status_code == 200


async def test_a_token_is_taken_where_a_key_is(running: Running, issuer: SimulatedIssuer) -> None:
    token = issuer.token(tenant="acme")
    request = running.http.build_request("GET", "/v1/models")
    request.headers = httpx.Headers({"host": "gateway", "x-api-key": token})
    assert (await running.http.send(request)).status_code == 200
    for scheme in ("Basic", "Token", ""):
        answer = await running.http.get("/v1/models", headers={"Authorization": f"{scheme} {token}".strip()})
        assert code(answer) == (401, "unauthorized")


async def test_no_token_is_written_down(
    running: Running, issuer: SimulatedIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("gateway").propagate = True
    caplog.set_level(logging.DEBUG)
    good, forged = issuer.token(tenant="acme"), issuer.token(tenant="acme", key=OTHER_RSA_KEY)
    expired = issuer.token(tenant="acme", exp=int(time.time()) - 900)
    said = ""
    for token in (good, forged, expired):
        for method, path in (("GET", "/adapters/x"), ("POST", "/adapters/x/rollback"), ("GET", "/console/nowhere")):
            answer = await ask(running, token, method, path)
            said += answer.text + str(answer.headers)
    said += caplog.text + (await running.http.get("/metrics")).text + (await running.http.get("/audit")).text
    files = b"".join(path.read_bytes() for path in running.data.rglob("*") if path.is_file())
    for token in (good, forged, expired):
        for part in token.split(".")[1:]:
            assert part not in said
            assert part.encode() not in files
    assert "refused" in caplog.text


async def test_keys_go_on_while_the_issuer_is_away(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> None:
    issuer.faults.away = True
    async with open_gateway(oidc_issuers=issuer.url, oidc_audiences=AUDIENCE) as running:
        answer = await ask(running, issuer.token(), "GET", "/v1/models")
        assert code(answer) == (503, "issuer_away")
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert "API keys go on" in answer.json()["error"]["message"]
        assert (await running.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await running.http.get("/health")).status_code == 200


async def test_nobody_else_waits_for_a_slow_issuer(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> None:
    issuer.faults.held = threading.Event()
    async with open_gateway(oidc_issuers=issuer.url, oidc_audiences=AUDIENCE) as running:
        await until(lambda: bool(issuer.asked))
        waiting = asyncio.create_task(ask(running, issuer.token(), "GET", "/v1/models"))
        assert (await running.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        issuer.faults.held.set()
        assert (await waiting).status_code in (200, 503), "503 on a machine too busy for the bound"


@pytest.mark.hostile("T02", "T03")
async def test_forged_tokens_come_nowhere(running: Running, issuer: SimulatedIssuer) -> None:
    """Each of them, through the door; tests/access/test_tokens.py has them one by one."""
    issuer.claims = {"sub": "mallory", "roles": ["admin"], "tenant": "default"}
    assert (await ask(running, issuer.token(), "GET", "/tenants")).status_code == 200
    for name, forge in SIGNED.items():
        assert code(await ask(running, forge(issuer), "GET", "/tenants")) == (401, "unauthorized"), name


async def test_without_issuers_a_token_is_an_unknown_key(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> None:
    async with open_gateway() as running:
        assert code(await ask(running, issuer.token(), "GET", "/v1/models")) == (401, "unauthorized")
    assert issuer.asked == []


async def test_a_gateway_needs_no_keys_beside_an_issuer_and_is_not_open_then(
    open_gateway: OpenHouse, issuer: SimulatedIssuer
) -> None:
    for more in ({}, {"open": True}):
        async with open_gateway(oidc_issuers=issuer.url, oidc_audiences=AUDIENCE, api_keys="", **more) as running:
            assert (await running.http.get("/v1/models", headers={"Authorization": ""})).status_code == 401
            assert (await running.http.get("/v1/models")).status_code == 401
            assert (await ask(running, issuer.token(), "GET", "/v1/models")).status_code == 200


async def test_one_key_beside_an_issuer_is_not_alone(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> None:
    """A single key may hold all of the engine only if nobody else comes."""
    async with open_gateway() as running:
        assert running.gateway.context.shares._single_key
    async with open_gateway(oidc_issuers=issuer.url, oidc_audiences=AUDIENCE) as running:
        assert not running.gateway.context.shares._single_key


ISSUER: Final = "https://sso.example.org"
CALLBACK: Final = "https://gateway.example.org/console/sign-in/oidc/callback"


@pytest.mark.parametrize(
    "bad",
    [
        {"oidc_issuers": ISSUER},
        {"oidc_audiences": "gateway"},
        {"oidc_issuers": "http://sso.example.org", "oidc_audiences": "gateway"},
        {"oidc_issuers": "sso.example.org", "oidc_audiences": "gateway"},
        {"oidc_issuers": f"ACME={ISSUER}", "oidc_audiences": "gateway"},
        {"oidc_issuers": f"-={ISSUER}", "oidc_audiences": "gateway"},
        {"oidc_issuers": f"{ISSUER},acme={ISSUER}", "oidc_audiences": "gateway"},
        {"oidc_issuers": ISSUER, "oidc_audiences": "gateway", "oidc_roles": "ml"},
        {"oidc_issuers": ISSUER, "oidc_audiences": "gateway", "oidc_roles": "ml=owner"},
        {"oidc_issuers": ISSUER, "oidc_audiences": "gateway", "oidc_roles": "=admin"},
        {"oidc_issuers": ISSUER, "oidc_audiences": "gateway", "oidc_leeway_seconds": 301},
        {"oidc_issuers": ISSUER, "oidc_audiences": "gateway", "oidc_client_secret": "x"},
        {"oidc_issuers": ISSUER, "oidc_client_id": CLIENT},
        {"oidc_issuers": ISSUER, "oidc_client_id": CLIENT, "oidc_redirect_url": "https://gateway.example.org/"},
        {"oidc_issuers": ISSUER, "oidc_client_id": CLIENT, "oidc_redirect_url": CALLBACK.replace("https", "http")},
        {"oidc_issuers": ISSUER, "oidc_client_id": CLIENT, "oidc_redirect_url": CALLBACK, "oidc_scopes": "email"},
    ],
    ids=str,
)
@pytest.mark.ruling("O01")
def test_settings_that_contradict_each_other_refuse_to_start(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"oidc_|issuer|value=role"):
        Settings(**{"model": "m", "reference": "r", "api_keys": KEY, **bad})


def test_settings_are_shown_without_the_secret() -> None:
    more: dict[str, Any] = {"oidc_client_id": CLIENT, "oidc_client_secret": "hush", "oidc_redirect_url": CALLBACK}
    settings = Settings(**{"model": "m", "reference": "r", "oidc_issuers": f"acme={ISSUER},{ISSUER}/b", **more})
    shown = {one.name: one.value for one in settings_in_force(settings)}
    assert shown["GATEWAY_OIDC_ISSUERS"] == f"acme={ISSUER}, {ISSUER}/b"
    assert shown["GATEWAY_OIDC_CLIENT_SECRET"] == "set, not shown"
    assert settings.issuers == (("acme", ISSUER), (None, f"{ISSUER}/b"))
