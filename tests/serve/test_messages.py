"""/v1/messages, Anthropic's API, at the gateway's door, over the simulated engine."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.domain.errors import SCHEMA_TOO_COSTLY, Refused
from app.serve.request import parse
from tests.support.gateway import Running, form
from tests.support.simulated_events import WORDS
from tests.support.simulated_messages import USAGE

TEXT = "".join(WORDS)
USER = {"role": "user", "content": "hello"}
TOOL: dict[str, Any] = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
CACHED = {"cache_control": {"type": "ephemeral"}}
USE: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1, {"b": None}]}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3", "is_error": False}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}


@pytest.fixture
async def http(running: Running) -> httpx.AsyncClient:
    assert (await running.http.post("/adapters", files=form("mine"))).status_code == 201
    return running.http


async def ask(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await http.post("/v1/messages", json={"model": "mine", "max_tokens": 8, "messages": [USER], **more})


def received(running: Running) -> dict[str, Any]:
    """Fields of a caller's that the engine got last."""
    return {key: value for key, value in running.simulator.seen[-1].items() if key not in ("model", "cache_salt")}


def events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    *whole, rest = answer.text.split("\n\n")
    assert rest == ""
    pairs = [event.split("\n") for event in whole]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


async def test_a_message_is_the_versions_under_the_name_asked(http: httpx.AsyncClient, running: Running) -> None:
    answer = await ask(http, system="be brief", temperature=0)
    said = answer.json()
    assert (said["model"], said["content"]) == ("mine", [{"type": "text", "text": "words of mine"}])
    assert answer.headers["x-adapter-version"] == "1"
    assert running.simulator.seen[-1]["model"].startswith("mine@")
    assert received(running) == {"max_tokens": 8, "messages": [USER], "system": "be brief", "temperature": 0}


async def test_a_stream_keeps_its_events_names_and_ends_with_the_last(http: httpx.AsyncClient) -> None:
    answer = await ask(http, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = events(answer)
    deltas = ["content_block_delta"] * len(WORDS)
    last = ["content_block_stop", "message_delta", "message_stop"]
    assert [name for name, _ in seen] == ["message_start", "content_block_start", *deltas, *last]
    assert [said["type"] for _, said in seen] == [name for name, _ in seen]
    assert seen[0][1]["message"]["model"] == "mine"
    assert "".join(said["delta"]["text"] for name, said in seen if name == "content_block_delta") == TEXT
    assert "@" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_its_tokens_are_counted_those_from_the_cache_too(http: httpx.AsyncClient, stream: bool) -> None:
    await ask(http, stream=stream)
    metrics = (await http.get("/metrics")).text
    assert 'gateway_tokens_total{adapter="mine",kind="prompt"} 3.0' in metrics
    assert f'gateway_tokens_total{{adapter="mine",kind="completion"}} {float(len(WORDS))}' in metrics


@pytest.mark.parametrize("fault", ["half", "malformed", "error", "other", "nan", "unlabelled", "eof"])
async def test_a_stream_that_goes_wrong_ends_with_an_error_event(
    http: httpx.AsyncClient, running: Running, fault: str
) -> None:
    running.simulator.faults["messages"] = fault
    answer = await ask(http, stream=True)
    assert answer.status_code == 200
    *before, (name, said) = events(answer)
    assert name == said["type"] == "error"
    assert said["error"]["code"] == "upstream_failed"
    assert said["error"]["message"]
    assert "message_stop" not in [name for name, _ in before]
    assert "@" not in answer.text
    if fault in ("other", "unlabelled"):
        assert before == []


async def test_an_answer_of_another_model_is_not_passed_on(http: httpx.AsyncClient, running: Running) -> None:
    running.simulator.faults["messages"] = "other"
    answer = await ask(http)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
    assert "words of" not in answer.text


async def test_the_engines_refusal_is_told_under_the_name_asked(http: httpx.AsyncClient, running: Running) -> None:
    running.simulator.faults["messages"] = "400"
    error = (await ask(http)).json()["error"]
    assert error["code"] == "engine_refused"
    assert error["message"].startswith("the engine says 400 of mine.")


async def test_a_client_that_leaves_ends_the_engines_work_and_its_tokens_are_counted(
    http: httpx.AsyncClient, running: Running
) -> None:
    running.simulator.faults["messages"] = "slow"
    body = json.dumps({"model": "mine", "max_tokens": 8, "messages": [USER], "stream": True}).encode()
    answer = await running.gateway.context.relay.complete("messages", body)
    assert not isinstance(answer.body, bytes)
    sent = b""
    while b"text_delta" not in sent:
        sent += await anext(answer.body)
    assert running.simulator.running == 1
    await answer.body.aclose()
    async with asyncio.timeout(1.0):
        while running.simulator.running:
            await asyncio.sleep(0.01)
    shown = (await http.get("/metrics")).text
    assert f'gateway_tokens_total{{adapter="mine",kind="completion"}} {float(sent.count(b"text_delta"))}' in shown
    assert f'gateway_tokens_total{{adapter="mine",kind="prompt"}} {float(USAGE["input_tokens"])}' in shown, (
        "told at the beginning"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cache_salt", "s"),
        ("kv_transfer_params", {}),
        ("ec_transfer_params", {}),
        ("vllm_xargs", {}),
        ("mm_payload", "none"),
        ("watermarking", False),
        ("max_tokens", None),
        ("max_tokens", 0),
        ("max_tokens", 1 << 40),
        ("messages", []),
        ("messages", [{"role": "root", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [IMAGE]}]),
        ("messages", [{"role": "user", "content": [RESULT | {"content": [IMAGE]}]}]),
        ("messages", [{"role": "user", "content": [{"type": "document", "source": {}}]}]),
        ("messages", [{"role": "system", "content": [{"type": "tool_addition", "tool": {}}]}]),
        ("messages", [{"role": "assistant", "content": [USE | {"input": "{}"}]}]),
        ("messages", [{"role": "assistant", "content": [USE | {"name": "../x"}]}]),
        ("messages", [{"role": "assistant", "content": [USE | {"input": {"a": [[]] * 10_001}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x"}] * 257}]),
        ("system", [IMAGE]),
        ("system", 1),
        ("stop_sequences", "x"),
        ("stop_sequences", [""]),
        ("temperature", 3),
        ("top_p", -1),
        ("stream", "yes"),
        ("tools", [TOOL] * 129),
        ("tools", [{"name": "f"}]),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("tool_choice", "auto"),
        ("tool_choice", {"type": "any"}),
        ("tool_choice", {"type": "tool", "name": "f"}),
        ("tool_choice", {"type": "tool"}),
        ("thinking", {"type": "enabled", "budget_tokens": 1}),
        ("output_config", {"format": {"type": "grammar"}}),
        ("metadata", [[[[]]] * 10_001]),
        ("chat_template_kwargs", {"chat_template": "x"}),
    ],
)
async def test_what_is_not_on_the_table_is_refused_by_name(
    http: httpx.AsyncClient, running: Running, field: str, value: Any
) -> None:
    seen = len(running.simulator.seen)
    answer = await ask(http, **{field: value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), answer.text
    assert answer.json()["error"]["param"] == field
    assert len(running.simulator.seen) == seen


@pytest.mark.parametrize(
    ("more", "passed", "named"),
    [
        ({"metadata": {"user_id": "me"}, "service_tier": "auto"}, {}, None),
        ({"tools": [], "tool_choice": {"type": "auto"}}, {}, None),
        ({"container": "c", "mcp_servers": []}, {}, "container, mcp_servers"),
        (
            {"system": [{"type": "text", "text": "x", **CACHED}]},
            {"system": [{"type": "text", "text": "x"}]},
            "system[].cache_control",
        ),
        (
            {"tools": [TOOL | CACHED | {"type": "custom"}], "tool_choice": {"type": "tool", "name": "f"}},
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
            "tools[].cache_control",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": [USE]},
                    {"role": "user", "content": [RESULT | CACHED]},
                ]
            },
            {"messages": [USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}]},
            "messages[].content[].cache_control",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [RESULT | {"content": [{"type": "text", "text": "x", "y": 1}]}]}
                ]
            },
            {"messages": [{"role": "user", "content": [RESULT | {"content": [{"type": "text", "text": "x"}]}]}]},
            "messages[].content[].content[].y",
        ),
    ],
)
async def test_what_clients_add_is_left_out_and_named(
    http: httpx.AsyncClient, running: Running, more: dict[str, Any], passed: dict[str, Any], named: str | None
) -> None:
    answer = await ask(http, **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-gateway-ignored-fields") == named
    assert received(running) == {"messages": [USER], "max_tokens": 8} | passed


@pytest.mark.parametrize(
    "more",
    [
        {"stop_sequences": ["x"], "top_k": 5, "top_p": 0.5, "temperature": 1, "stream": False},
        {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, "max_tokens": 2048},
        {"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "y"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]},
        {
            "messages": [
                {"role": "user", "content": [RESULT | {"content": [{"type": "tool_reference", "tool_name": "f"}]}]}
            ]
        },
    ],
)
async def test_anthropics_fields_pass(http: httpx.AsyncClient, running: Running, more: dict[str, Any]) -> None:
    answer = await ask(http, **more)
    assert answer.status_code == 200, answer.text
    assert running.simulator.seen[-1].items() >= more.items()


COSTLY = {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "." * (290 + i)} for i in range(20)}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"output_config": {"format": {"type": "json_schema", "schema": COSTLY}}}, "output_config"),
        ({"tools": [TOOL | {"input_schema": COSTLY}], "tool_choice": {"type": "any"}}, "tools"),
    ],
)
def test_schemas_cost_what_they_cost_elsewhere(more: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        parse("messages", json.dumps({"model": "m", "max_tokens": 8, "messages": [USER], **more}).encode())
    assert caught.value.code is SCHEMA_TOO_COSTLY
    assert str(caught.value.param).startswith(param)


@pytest.mark.parametrize(("choice", "compiled"), [({"type": "auto"}, False), ({"type": "any"}, True), (None, False)])
def test_tools_are_compiled_if_one_must_be_called(choice: Any, compiled: bool) -> None:
    asked = {"model": "m", "max_tokens": 8, "messages": [USER], "tools": [TOOL], "tool_choice": choice}
    load = parse("messages", json.dumps(asked).encode()).load
    assert (load.sequences, load.tokens, load.schemas > 0) == (1, 8, compiled)


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/messages/render"])
async def test_no_other_path_of_the_engines_is_reached(running: Running, path: str) -> None:
    answer = await running.http.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
