"""Who may come in, and what an error looks like."""

import asyncio

import httpx
import pytest
from pydantic import ValidationError

from app.server.settings import Settings
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.waiting import STUCK_S

GUARDED = [
    ("GET", "/adapters"),
    ("GET", "/adapters/x"),
    ("GET", "/adapters/x/versions/1"),
    ("POST", "/adapters"),
    ("POST", "/adapters/x/rollback"),
    ("DELETE", "/adapters/x"),
    ("POST", "/screen"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/metrics"),
    ("GET", "/metrics/engine"),
    ("GET", "/openapi.json"),
]


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
@pytest.mark.parametrize(("method", "path"), GUARDED, ids=lambda value: value.strip("/") or "root")
async def test_without_a_key_nothing_but_health_answers(running: Running, method: str, path: str, key: str) -> None:
    answer = await running.http.request(method, path, headers={"Authorization": key})
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("unauthorized", "authentication_error")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


async def test_the_key_is_taken_where_anthropics_clients_send_it(running: Running) -> None:
    async def status(*headers: tuple[str, str]) -> int:
        request = running.http.build_request("GET", "/v1/models")
        request.headers = httpx.Headers([("host", request.headers["host"]), *headers])
        return (await running.http.send(request)).status_code

    assert await status(("x-api-key", KEY)) == 200
    assert await status(("x-api-key", f"{KEY}x")) == 401
    assert await status(("x-api-key", KEY), ("authorization", "Bearer wrong")) == 401
    assert await status(("x-api-key", KEY), ("x-api-key", KEY)) == 400


@pytest.mark.parametrize("path", ["/health", "/healthz"])
async def test_health_needs_no_key(running: Running, path: str) -> None:
    assert (await running.http.get(path, headers={"Authorization": ""})).status_code == 200


@pytest.mark.parametrize("path", ["/ready", "/readyz"])
async def test_readiness_needs_no_key_and_says_what_is_missing(running: Running, path: str) -> None:
    async def parts() -> tuple[int, dict[str, str]]:
        answer = await running.http.get(path, headers={"Authorization": ""})
        return answer.status_code, answer.json()["parts"]

    async with asyncio.timeout(STUCK_S):
        while (await parts())[0] != 200:  # until the first pass over the engine
            await asyncio.sleep(0.02)
    assert await parts() == (200, {"reference": "ok", "store": "ok", "engine": "ok"})
    staging = running.data / "artefacts" / ".staging"
    staging.rename(staging.with_name("gone"))
    status, said = await parts()
    assert status == 503
    assert "log says why" in said["store"]
    assert str(running.data) not in str(said)
    staging.with_name("gone").rename(staging)


async def test_an_open_gateway_must_be_asked_for(open_gateway: OpenHouse) -> None:
    with pytest.raises(ValidationError, match="GATEWAY_OPEN"):
        async with open_gateway(api_keys=""):
            pass
    async with open_gateway(api_keys="", open=True) as running:
        assert (await running.http.get("/adapters", headers={"Authorization": ""})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/adapters", 405, "method_not_allowed"),
        ("GET", "/adapters/nobody", 404, "adapter_not_found"),
        ("GET", "/adapters/nobody/versions/1", 404, "adapter_not_found"),
        ("GET", "/adapters/nobody/versions/x", 400, "bad_request"),
        ("POST", "/adapters/nobody/rollback", 404, "adapter_not_found"),
        ("POST", "/adapters", 400, "bad_multipart"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("POST", "/v1/chat/completions", 400, "invalid_request"),
        ("POST", "/v1/load_lora_adapter", 404, "not_found"),
    ],
)
async def test_every_error_is_openais_envelope(
    running: Running, method: str, path: str, status: int, code: str
) -> None:
    answer = await running.http.request(method, path)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    metrics = (await running.http.get("/metrics")).text
    assert f'code="{code}"' in metrics


async def test_the_documentation_is_for_those_with_a_key(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        assert (await running.http.get("/docs")).status_code == 200
        assert (
            await running.http.get("/docs", headers={"Authorization": ""})
        ).status_code == 303  # to the sign-in page
        assert "/adapters" in (await running.http.get("/openapi.json")).json()["paths"]
    async with open_gateway(api_keys="", open=True) as running:
        assert (await running.http.get("/docs")).status_code == 200


async def test_no_key_stands_in_what_the_gateway_says(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    for path in ("/metrics", "/adapters", "/openapi.json"):
        assert KEY not in (await running.http.get(path)).text


@pytest.mark.parametrize(
    "bad",
    [
        {"tau": "nan"},
        {"tau": "inf"},
        {"tau": "0,9"},
        {"max_pruned_share": "1.5"},
        {"max_lora_rank": "7"},
        {"reference_digest": "xyz"},
        {"unknown_field": "1"},
        {"port": "70000"},
    ],
    ids=str,
)
@pytest.mark.ruling("O01")
def test_settings_that_cannot_be_meant_refuse_to_start(bad: dict[str, str]) -> None:
    with pytest.raises((ValidationError, ValueError)):
        Settings(**{"model": "m", "reference": "r", "open": "true", **bad})  # type: ignore[arg-type]


async def test_a_gateway_is_not_ready_before_the_served_model_can_be_asked(open_gateway: OpenHouse) -> None:
    """On vLLM's CPU build an adapter of zeros answers for it, which must be loaded first."""
    chat = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
    async with open_gateway(base_through_noop=True, reconcile_seconds=0.05) as running:
        async with asyncio.timeout(STUCK_S):
            while (await running.http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.001)
        assert (await running.http.post("/v1/chat/completions", json=chat)).status_code == 200
        running.simulator.faults["load"] = "500"
        running.simulator.loaded.clear()  # a restart that forgot it
        async with asyncio.timeout(STUCK_S):
            while (await running.http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
        assert (await running.http.post("/v1/chat/completions", json=chat)).status_code == 503
