"""Requests that another site's page made a browser send: refused before a byte of their body is read."""

from typing import Any

import pytest

from tests.support.gateway import KEY, OpenHouse, Running, form

OURS = {
    "a program": {},
    "the console, over https or on loopback": {"Sec-Fetch-Site": "same-origin", "Origin": "http://gateway"},
    "the visitor himself": {"Sec-Fetch-Site": "none"},
    "the console, over plain http": {"Origin": "http://gateway"},
    "the console, behind a proxy that ends TLS": {"Origin": "https://gateway"},
    "with a port": {"Origin": "http://gateway:8080", "Host": "gateway:8080"},
    "an IPv6 address": {"Origin": "http://[::1]:8080", "Host": "[::1]:8080"},
    "whoever has a key": {"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example", "Authorization": "Bearer x"},
    "whoever has a key, as Anthropic's clients send it": {"Origin": "https://app.example", "x-api-key": "x"},
}
THEIRS = {
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "another port": {"Sec-Fetch-Site": "same-site", "Origin": "http://gateway:3000"},
    "an odd word": {"Sec-Fetch-Site": "same-origin, cross-site"},
    "an origin alone": {"Origin": "https://evil.example"},
    "another port, an origin alone": {"Origin": "http://gateway:3000"},
    "a longer name": {"Origin": "http://gateway.evil.example"},
    "a name before ours": {"Origin": "http://evil.gateway"},
    "a user of our name": {"Origin": "http://gateway@evil.example"},
    "a page without a site": {"Origin": "null"},
    "no site at all": {"Origin": ""},
    "a file": {"Origin": "file://gateway"},
    "an extension": {"Origin": "chrome-extension://gateway"},
    "no number for a port": {"Origin": "http://gateway:99999999"},
    "a password the browser keeps": {"Sec-Fetch-Site": "cross-site", "Authorization": "Basic eDp5"},
}
CHAT = {"model": "first", "messages": [{"role": "user", "content": "hello"}]}
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "upload": ("POST", "/adapters", {"files": form("first")}),
    "dry run": ("POST", "/screen", {"files": form("first")}),
    "rollback": ("POST", "/adapters/first/rollback", {"params": {"to": 1}}),
    "delete": ("DELETE", "/adapters/first", {}),
    "chat": ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"Content-Type": "text/plain"}}),
    "completion": ("POST", "/v1/completions", {"json": {"model": "first", "prompt": "x"}}),
    "sign in": ("POST", "/console/session", {"data": {"key": "x"}}),
    "sign out": ("DELETE", "/console/session", {}),
}


@pytest.mark.parametrize("headers", THEIRS.values(), ids=list(THEIRS))
@pytest.mark.hostile
async def test_another_sites_page_changes_nothing_and_costs_nothing(
    open_gateway: OpenHouse, headers: dict[str, str]
) -> None:
    async with open_gateway(api_keys="", open=True) as running:
        running.http.headers.pop("authorization")
        for method, path, sent in REQUESTS.values():
            request = {**sent, "headers": {**sent.get("headers", {}), **headers}}
            answer = await running.http.request(method, path, **request)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site"), (path, answer.text)
            assert answer.headers["connection"] == "close"
        assert (await running.http.get("/adapters", headers=headers)).json()["adapters"] == []
        assert not running.simulator.seen
        refused = f'gateway_rejected_total{{code="cross_site",stage="door"}} {len(REQUESTS)}.0'
        assert refused in (await running.http.get("/metrics")).text


@pytest.mark.parametrize("headers", OURS.values(), ids=list(OURS))
async def test_our_own_pages_and_programs_are_none_of_its_business(
    open_gateway: OpenHouse, headers: dict[str, str]
) -> None:
    async with open_gateway(api_keys="", open=True) as running:
        running.http.headers.pop("authorization")
        assert (await running.http.post("/adapters", files=form("first"), headers=headers)).status_code == 201
        assert (await running.http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
        assert (await running.http.delete("/adapters/first", headers=headers)).status_code == 204


async def test_an_operators_own_name_is_ours_where_a_proxy_changes_host(open_gateway: OpenHouse) -> None:
    headers = {"Origin": "https://llm.example", "X-Console": "1"}
    async with open_gateway(allowed_hosts="llm.example, gateway") as running:
        running.http.headers.pop("authorization")
        assert (await running.http.delete("/console/session", headers=headers)).status_code == 204
    async with open_gateway() as running:
        running.http.headers.pop("authorization")
        assert (await running.http.delete("/console/session", headers=headers)).status_code == 403


async def test_an_open_gateway_on_loopback_knows_no_other_name(open_gateway: OpenHouse) -> None:
    """A page whose own name was made to lead here (DNS rebinding) would be same-origin: its name gives it away."""
    async with open_gateway(api_keys="", open=True, host="127.0.0.1") as running:
        for host, status in {"localhost:8080": 200, "127.0.0.1:8080": 200, "[::1]": 200, "evil.example": 400}.items():
            assert (await running.http.get("/adapters", headers={"Host": host})).status_code == status, host
    async with open_gateway(host="127.0.0.1") as running:
        assert (await running.http.get("/adapters", headers={"Host": "any.example"})).status_code == 200


@pytest.mark.parametrize("request_of", REQUESTS)
@pytest.mark.hostile("U26")
async def test_a_session_is_no_excuse_for_another_sites_page(running: Running, request_of: str) -> None:
    """The cookie became a key before the check, which spares whoever sends a key."""
    running.http.headers.pop("authorization")
    method, path, sent = REQUESTS[request_of]
    console = {"X-Console": "1", "Sec-Fetch-Site": "same-origin"}
    signed_in = await running.http.post("/console/session", data={"key": KEY}, headers=console)
    assert signed_in.status_code == 204
    assert (await running.http.get("/adapters", headers=console)).status_code == 200  # the client keeps the cookie
    for theirs in THEIRS.values():
        if "Authorization" in theirs:
            continue
        headers = {**sent.get("headers", {}), "X-Console": "1", **theirs}
        answer = await running.http.request(method, path, **{**sent, "headers": headers})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site"), answer.text
        assert answer.headers["x-request-id"]
    assert not running.simulator.seen
    ours = await running.http.post("/v1/chat/completions", json={**CHAT, "model": "served"}, headers=console)
    assert ours.status_code == 200
