"""/v1/responses and /v1/embeddings at the gateway's door, over the simulated engine."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.domain.errors import Refused
from app.serve.request import parse
from tests.support.gateway import SERVED, Running, form
from tests.support.simulated_events import WORDS
from tests.support.simulated_responses import USAGE

TEXT = "".join(WORDS)
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed", "id": "fc_1"}
SAID: dict[str, Any] = {"type": "output_text", "text": "hi", "annotations": [], "logprobs": None}


@pytest.fixture
async def http(running: Running) -> httpx.AsyncClient:
    assert (await running.http.post("/adapters", files=form("mine"))).status_code == 201
    return running.http


async def ask(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await http.post("/v1/responses", json={"model": "mine", "input": "hello", **more})


def events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    *whole, rest = answer.text.split("\n\n")
    assert rest == ""
    pairs = [event.split("\n") for event in whole]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


async def test_a_response_is_the_versions_under_the_name_asked_and_kept_nowhere(
    http: httpx.AsyncClient, running: Running
) -> None:
    answer = await ask(http, instructions="be brief", max_output_tokens=3)
    said = answer.json()
    assert (said["model"], said["output"][0]["content"][0]["text"]) == ("mine", TEXT)
    assert answer.headers["x-adapter-version"] == "1"
    assert running.simulator.seen[-1]["store"] is False
    assert running.simulator.seen[-1]["model"].startswith("mine@")


async def test_a_stream_keeps_its_events_names_and_ends_with_the_last(http: httpx.AsyncClient) -> None:
    answer = await ask(http, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = events(answer)
    deltas = ["response.output_text.delta"] * len(WORDS)
    assert [name for name, _ in seen] == ["response.created", *deltas, "response.completed"]
    assert [said["type"] for _, said in seen] == [name for name, _ in seen]
    assert seen[0][1]["response"]["model"] == seen[-1][1]["response"]["model"] == "mine"
    assert seen[-1][1]["response"]["usage"] == USAGE
    assert "@" not in answer.text


async def test_its_tokens_are_counted(http: httpx.AsyncClient) -> None:
    await ask(http)
    await ask(http, stream=True)
    metrics = (await http.get("/metrics")).text
    assert f'gateway_tokens_total{{adapter="mine",kind="completion"}} {2.0 * len(WORDS)}' in metrics


@pytest.mark.parametrize("fault", ["half", "malformed", "error", "other", "nan", "unlabelled", "eof"])
async def test_a_stream_that_goes_wrong_ends_with_an_error_event(
    http: httpx.AsyncClient, running: Running, fault: str
) -> None:
    running.simulator.faults["responses"] = fault
    answer = await ask(http, stream=True)
    assert answer.status_code == 200
    *before, (name, said) = events(answer)
    assert name == said["type"] == "error"
    assert said["code"] == said["error"]["code"] == "upstream_failed"
    assert said["message"]
    assert said["sequence_number"] == len(before)
    assert "response.completed" not in [name for name, _ in before]
    assert "@" not in answer.text
    if fault in ("other", "unlabelled"):
        assert TEXT not in answer.text.replace('"', "")
        assert before == []


async def test_a_client_that_leaves_ends_the_engines_work(http: httpx.AsyncClient, running: Running) -> None:
    running.simulator.faults["responses"] = "slow"
    body = json.dumps({"model": "mine", "input": "x", "stream": True}).encode()
    answer = await running.gateway.context.relay.complete("responses", body)
    assert not isinstance(answer.body, bytes)
    await anext(answer.body)
    assert running.simulator.running == 1
    await answer.body.aclose()
    async with asyncio.timeout(1.0):
        while running.simulator.running:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("store", True),
        ("background", True),
        ("prompt", {"id": "pmpt_1"}),
        ("request_id", "resp_mine"),
        ("session_id", "s"),
        ("cache_salt", "s"),
        ("priority", 1),
        ("previous_input_messages", []),
        ("vllm_xargs", {}),
        ("mm_processor_kwargs", {}),
        ("tools", [{"type": "mcp", "server_label": "x", "server_url": "http://169.254.169.254"}]),
        ("tools", [{"type": "web_search_preview"}]),
        ("tools", [TOOL] * 129),
        ("tool_choice", {"type": "mcp"}),
        ("input", []),
        ("input", ""),
        ("input", [{"role": "user"}]),
        ("input", [{"role": "root", "content": "x"}]),
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "http://169.254.169.254/"}]}]),
        ("input", [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]),
        ("input", [{"type": "function_call", "call_id": "c", "name": "../x", "arguments": "{}"}]),
        ("max_output_tokens", 0),
        ("max_output_tokens", 1 << 40),
        ("top_logprobs", 21),
        ("include", ["x" * 65]),
        ("input", [{"id": "msg_1"}]),
        ("tools", [{"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "mcp"}]}]),
        ("tools", [{"type": "custom", "name": "n", "format": {"type": "grammar", "syntax": "lark"}}]),
        ("chat_template_kwargs", {"a": []}),
        ("text", {"format": {"type": "regex"}}),
        ("metadata", [[[[]]] * 10_001]),
        ("stream", "yes"),
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
    "more",
    [
        {"store": False, "previous_response_id": None, "background": False, "metadata": {"a": "b"}, "user": "me"},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}, CALL]},
        {"input": [CALL, {"type": "function_call_output", "call_id": "c1", "output": "3"}]},
        {"input": [{"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [SAID]}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "content": [], "encrypted_content": None}]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
        {"reasoning": {"effort": "low"}, "truncation": "auto", "top_logprobs": 2, "logit_bias": {"3": 1}},
        {"seed": 1, "temperature": 0, "stop": ["x"], "ignore_eos": False, "repetition_penalty": 1.1},
        {"structured_outputs": {"regex": "a+"}, "chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [{"type": "custom", "name": "f", "format": {"type": "text"}}], "max_tool_calls": 3},
        {"tools": [{"type": "namespace", "name": "n", "description": "d", "tools": [TOOL]}]},
        {"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}]},
        {"include": ["message.output_text.logprobs"], "temperature": 0.1, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
    ],
)
async def test_openais_fields_pass(http: httpx.AsyncClient, more: dict[str, Any]) -> None:
    answer = await ask(http, **more)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("more", "passed", "named"),
    [
        (
            {"input": [{"role": "user", "content": "x", "extra": 1}]},
            {"input": [{"type": "message", "role": "user", "content": "x"}]},
            "input[].extra",
        ),
        (
            {"input": [{"type": "reasoning", "id": "r", "encrypted_content": "gAAA"}]},
            {"input": [{"type": "reasoning", "id": "r", "summary": []}]},
            "input[].encrypted_content",
        ),
        (
            {"input": [{"role": "assistant", "content": None}, {"role": "assistant", "content": []}]},
            {"input": [{"type": "message", "role": "assistant", "content": ""}] * 2},
            None,
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
            {
                "input": [
                    {
                        "type": "message",
                        "role": "assistant",
                        "id": "msg",
                        "status": "completed",
                        "content": [{"type": "output_text", "text": "no", "annotations": []}],
                    }
                ]
            },
            None,
        ),
        ({"include": ["reasoning.encrypted_content"]}, {}, "include[].reasoning.encrypted_content"),
        ({"max_output_tokens": -1, "max_tool_calls": 2.0}, {"max_tool_calls": 2}, None),
        ({"text": {"verbosity": "low", "x": 1}, "y": 1}, {"text": {"verbosity": "low"}}, "text.x, y"),
    ],
)
async def test_what_clients_add_is_left_out_and_named(
    http: httpx.AsyncClient, running: Running, more: dict[str, Any], passed: dict[str, Any], named: str | None
) -> None:
    answer = await ask(http, **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-gateway-ignored-fields") == named
    received = {key: value for key, value in running.simulator.seen[-1].items() if key not in ("model", "cache_salt")}
    assert received == {"input": "hello", "store": False} | passed


async def test_a_reference_to_a_stored_item_says_what_to_do_instead(http: httpx.AsyncClient) -> None:
    said = (await ask(http, input=[{"type": "item_reference", "id": "msg_1"}])).json()["error"]["message"]
    assert "store: false" in said


async def test_a_conversation_asked_for_says_what_to_do_instead(http: httpx.AsyncClient) -> None:
    said = (await ask(http, previous_response_id="resp_1")).json()["error"]["message"]
    assert "keeps no responses" in said


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/responses/render"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_other_path_of_the_engines_is_reached(running: Running, path: str, method: str) -> None:
    answer = await running.http.request(method, path, json={} if method == "POST" else None)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_embeddings_where_the_engine_makes_some(http: httpx.AsyncClient, running: Running) -> None:
    running.simulator.embeds = True
    answer = await http.post("/v1/embeddings", json={"model": "mine", "input": ["a", "b"], "encoding_format": "float"})
    assert (answer.status_code, answer.json()["model"]) == (200, "mine")
    assert answer.headers["x-adapter-version"] == "1"
    assert running.simulator.seen[-1]["input"] == ["a", "b"]


async def test_embeddings_where_it_makes_none_are_not_an_adapter_that_is_missing(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/embeddings", json={"model": SERVED, "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_offered")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []),
        ("input", [[]]),
        ("input", ["a"] * 65),
        ("encoding_format", "pickle"),
        ("dimensions", 0),
        ("truncate_prompt_tokens", -2),
        ("use_activation", 1),
        ("priority", 1),
    ],
)
def test_embeddings_have_a_table_too(field: str, value: Any) -> None:
    with pytest.raises(Refused) as caught:
        parse("embeddings", json.dumps({"model": "m", "input": "x", field: value}).encode())
    assert caught.value.param == field
