"""Every answer has a request id: the caller's where it is well formed, else one of ours."""

import json
import logging
import re

import pytest

from tests.support.gateway import Running, form

OURS = re.compile(r"[0-9a-f]{32}")
ROUTES = [
    ("GET", "/health", 200),
    ("GET", "/adapters", 200),
    ("GET", "/v1/models", 200),
    ("GET", "/nowhere", 404),
    ("PUT", "/adapters", 405),
    ("POST", "/adapters", 400),
    ("POST", "/v1/chat/completions", 400),
]


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
async def test_every_answer_returns_the_callers_id(running: Running, method: str, path: str, status: int) -> None:
    answer = await running.http.request(method, path, headers={"X-Request-Id": "req-1.a:b_C"})
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, ["req-1.a:b_C"])


async def test_a_refused_key_is_answered_with_an_id_too(running: Running) -> None:
    answer = await running.http.get("/adapters", headers={"Authorization": "", "X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "mine")


@pytest.mark.parametrize("given", ["", " ", "a b", "-a", "x" * 129, 'a"b', "ä", "a,b", "a\tb", "../a"])
async def test_an_ill_formed_id_is_replaced(running: Running, given: str) -> None:
    answer = await running.http.get("/health", headers=[(b"x-request-id", given.encode())])
    assert OURS.fullmatch(answer.headers["x-request-id"])


async def test_without_one_each_answer_has_its_own(running: Running) -> None:
    ids = {(await running.http.get("/health")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    assert all(OURS.fullmatch(found) for found in ids)


async def test_a_bug_of_ours_is_answered_with_the_id(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(running.gateway.context.uploads.components.catalogue, "adapter", broken)
    answer = await running.http.get("/adapters/x", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")


async def test_it_stands_in_the_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gateway"):
        await running.http.get("/adapters/nobody", headers={"X-Request-Id": "find-me"})
    assert "find-me" in {getattr(record, "fields", {}).get("request") for record in caplog.records}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_gets_it_with_an_end_of_ours(running: Running, stream: bool) -> None:
    await running.http.post("/adapters", files=form("first"))
    body = {"model": "first", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    for _ in range(2):
        answer = await running.http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "same"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "same")
    got = running.simulator.request_ids[-2:]
    assert all(re.fullmatch(r"same-[0-9a-f]{8}", found) for found in got)
    assert got[0] != got[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_headers_say_which_version_answered_and_what_it_cost(running: Running, stream: bool) -> None:
    made = (await running.http.post("/adapters", files=form("first"))).json()
    body = {"model": "first", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    answer = await running.http.post("/v1/chat/completions", content=json.dumps(body))
    assert answer.headers["x-adapter-version"] == "1"
    assert answer.headers["x-adapter-digest"] == made["digest"]
    assert 0 <= float(answer.headers["x-gateway-overhead-ms"]) < 1000


BEFORE_ROUTING = {
    "bad_host": ("GET", "/health", {"Host": "a/?x="}),
    "not_found": ("GET", "/v1%2fchat", {}),
    "cross_site": ("POST", "/adapters", {"Authorization": "", "Sec-Fetch-Site": "cross-site"}),
    "unsupported_encoding": ("POST", "/adapters", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("code", BEFORE_ROUTING)
async def test_what_is_refused_before_routing_has_one_too(running: Running, code: str) -> None:
    method, path, headers = BEFORE_ROUTING[code]
    given = await running.http.request(method, path, headers={**headers, "X-Request-Id": "mine"})
    assert (given.json()["error"]["code"], given.headers.get_list("x-request-id")) == (code, ["mine"])
    ours = await running.http.request(method, path, headers=headers)
    assert OURS.fullmatch(ours.headers["x-request-id"])
