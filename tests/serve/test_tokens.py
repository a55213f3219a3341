"""/tokenize and /detokenize at the gateway's door, over the simulated engine, whose tokens are characters."""

import json
from typing import Any

import httpx
import pytest

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, Refused
from app.serve.fields.tokens import MAX_TOKENIZED_BYTES
from app.serve.json_body import MAX_VALUES
from app.serve.request import parse
from app.serve.request_load import Kind, Load
from tests.support.gateway import SERVED, Running, form

USER = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
async def http(running: Running) -> httpx.AsyncClient:
    assert (await running.http.post("/adapters", files=form("mine"))).status_code == 201
    return running.http


async def test_a_text_becomes_tokens_and_they_become_the_text(http: httpx.AsyncClient, running: Running) -> None:
    answer = await http.post("/tokenize", json={"model": "mine", "prompt": "Ab", "return_token_strs": True})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"count": 2, "max_model_len": 512, "tokens": [65, 98], "token_strs": ["A", "b"]}
    assert answer.headers["x-adapter-version"] == "1"
    back = await http.post("/detokenize", json={"model": "mine@1", "tokens": answer.json()["tokens"]})
    assert (back.status_code, back.json()) == (200, {"prompt": "Ab"})
    assert [seen["model"].partition("@")[0] for seen in running.simulator.seen[-2:]] == ["mine", "mine"]
    assert running.simulator.seen[-1].keys() == {"model", "tokens"}, "no salt: nothing is cached"


async def test_a_conversation_becomes_tokens(http: httpx.AsyncClient, running: Running) -> None:
    asked = {"messages": [USER], "tools": [TOOL], "add_generation_prompt": False, "chat_template_kwargs": {"a": 1}}
    answer = await http.post("/tokenize", json={"model": SERVED, "user": "me", **asked})
    assert (answer.status_code, answer.json()["count"]) == (200, len("<user>hi"))
    assert running.simulator.seen[-1] == {"model": SERVED, **asked}


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("tokenize", {"model": "nobody", "prompt": "x"}, 404, "model_not_found", "model"),
        ("detokenize", {"model": "nobody", "tokens": [1]}, 404, "model_not_found", "model"),
        ("tokenize", {"prompt": "x"}, 400, "model_missing", "model"),
        ("tokenize", {"model": SERVED}, 400, "invalid_request", "prompt"),
        ("tokenize", {"model": SERVED, "prompt": "x", "messages": [USER]}, 400, "invalid_request", "prompt"),
        ("tokenize", {"model": SERVED, "prompt": ["x"]}, 400, "invalid_request", "prompt"),
        ("tokenize", {"model": SERVED, "messages": []}, 400, "invalid_request", "messages"),
        (
            "tokenize",
            {"model": SERVED, "prompt": "x", "chat_template": "{{ 1 }}"},
            400,
            "invalid_request",
            "chat_template",
        ),
        ("detokenize", {"model": SERVED}, 400, "invalid_request", "tokens"),
        ("detokenize", {"model": SERVED, "tokens": [-1]}, 400, "invalid_request", "tokens"),
        ("detokenize", {"model": SERVED, "tokens": "x"}, 400, "invalid_request", "tokens"),
    ],
)
async def test_refusals_are_those_of_other_routes(
    running: Running, path: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = await running.http.post(f"/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert not running.simulator.seen


def test_texts_and_tokens_have_caps() -> None:
    def refused(kind: Kind, **more: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            parse(kind, json.dumps({"model": "m", **more}).encode())
        return caught.value

    assert refused("tokenize", prompt="x" * MAX_TOKENIZED_BYTES).code is REQUEST_TOO_LARGE
    assert refused("detokenize", tokens=[1] * (MAX_VALUES + 1)).code is REQUEST_TOO_LARGE
    assert refused("detokenize", tokens=[1 << 31]).code is INVALID_REQUEST


@pytest.mark.parametrize("body", [{"prompt": "x"}, {"messages": [USER], "tools": [TOOL]}])
def test_it_holds_a_place_in_the_engine_and_generates_nothing(body: dict[str, Any]) -> None:
    assert parse("tokenize", json.dumps({"model": "m", **body}).encode()).load == Load(1, 0)


async def test_what_clients_add_is_left_out_and_named(http: httpx.AsyncClient, running: Running) -> None:
    asked = {"model": SERVED, "messages": [USER | {"x": 1}], "temperature": 1}
    answer = await http.post("/tokenize", json=asked)
    assert answer.headers["x-gateway-ignored-fields"] == "messages[].x, temperature"
    assert running.simulator.seen[-1] == {"model": SERVED, "messages": [USER]}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("garbage", 502, "upstream_failed"), ("500", 502, "upstream_failed"), ("reset", 503, "engine_unavailable")],
)
async def test_an_engine_that_answers_no_json_is_reported(
    http: httpx.AsyncClient, running: Running, fault: str, status: int, code: str
) -> None:
    running.simulator.faults["tokenize"] = fault
    answer = await http.post("/tokenize", json={"model": "mine", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_an_engine_that_has_lost_the_adapter_is_not_asked_as_the_served_model(
    http: httpx.AsyncClient, running: Running
) -> None:
    running.simulator.faults["load"] = "lie"
    running.simulator.loaded.clear()
    answer = await http.post("/tokenize", json={"model": "mine", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_its_prompt_reaches_no_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, running: Running
) -> None:
    caplog.set_level("DEBUG")
    assert (await http.post("/tokenize", json={"model": SERVED, "prompt": "Qz17-secret"})).status_code == 200
    assert running.simulator.seen[-1]["prompt"] == "Qz17-secret"
    assert "Qz17-secret" not in caplog.text


async def test_a_messages_tokens_are_counted_and_no_field_of_its_answer_is_sent(
    http: httpx.AsyncClient, running: Running
) -> None:
    asked = {"messages": [USER], "system": "be brief"}
    answer = await http.post("/v1/messages/count_tokens", json={"model": "mine", "max_tokens": 8, **asked})
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": len("<user>hi")})
    assert answer.headers["x-gateway-ignored-fields"] == "max_tokens"
    assert {key: value for key, value in running.simulator.seen[-1].items() if key != "model"} == asked
    choice = {"type": "tool", "name": "absent"}
    answer = await http.post("/v1/messages/count_tokens", json={"model": "mine", **asked, "tool_choice": choice})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")
