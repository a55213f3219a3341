"""Pages of other origins: those that the operator allows may call the API with a key, all others may not."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import ValidationError

from app.cli.main import _flags
from app.server.settings import Settings
from tests.support.gateway import KEY, SERVED, OpenHouse, Running

OURS, THEIRS = "https://chat.example.org", "https://evil.example.org"
CHAT = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


@pytest_asyncio.fixture
async def allowing(open_gateway: OpenHouse) -> AsyncIterator[Running]:
    async with open_gateway(allowed_origins=OURS) as made:
        yield made


async def test_a_page_of_an_allowed_origin_may_chat_with_a_key(allowing: Running) -> None:
    preflight = await allowing.http.options(
        "/v1/chat/completions", headers={"origin": OURS, **ASKS, "authorization": ""}
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == OURS
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    for headers in ({"origin": OURS}, {"origin": OURS, "sec-fetch-site": "cross-site"}):
        answer = await allowing.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, OURS)
    without = await allowing.http.post("/v1/chat/completions", json=CHAT, headers={"origin": OURS, "authorization": ""})
    assert (without.status_code, without.headers["access-control-allow-origin"]) == (401, OURS), "it can read why"


async def test_a_page_of_another_origin_reads_nothing(allowing: Running) -> None:
    preflight = await allowing.http.options("/v1/chat/completions", headers={"origin": THEIRS, **ASKS})
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    answer = await allowing.http.get("/v1/models", headers={"origin": THEIRS})
    assert "access-control-allow-origin" not in answer.headers


async def test_an_open_gateway_takes_requests_of_allowed_pages_and_no_others(open_gateway: OpenHouse) -> None:
    async with open_gateway(allowed_origins=OURS, api_keys="", open=True) as running:
        for origin, status in ((OURS, 200), (THEIRS, 403)):
            headers = {"origin": origin, "sec-fetch-site": "cross-site", "authorization": ""}
            assert (await running.http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == status


async def test_by_default_no_page_is_allowed(running: Running) -> None:
    answer = await running.http.get("/v1/models", headers={"origin": OURS})
    assert "access-control-allow-origin" not in answer.headers
    assert (await running.http.options("/v1/models", headers={"origin": OURS, **ASKS})).status_code == 405


@pytest.mark.parametrize("wrong", ["*", "chat.example.org", "https://chat.example.org/", "null", "https://*.org"])
def test_only_whole_origins_are_settings(wrong: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(**_flags(["--model", "m", "--reference", "r", "--api-keys", KEY, "--allowed-origins", wrong]))


async def test_a_path_of_the_api_may_end_with_a_slash_and_no_other(running: Running) -> None:
    assert (await running.http.get("/v1/models/")).status_code == 200
    assert (await running.http.post("/v1/chat/completions/", json=CHAT)).status_code == 200
    for path in ("/metrics/", "/adapters/", "/v1/models//", "/v1//"):
        assert (await running.http.get(path)).status_code == 404, path


async def test_the_version_is_told_to_those_with_a_key(running: Running) -> None:
    assert (await running.http.get("/version")).json().keys() == {"version"}
    assert (await running.http.get("/version", headers={"authorization": ""})).status_code == 401
