"""Whatever else a body holds, the engine gets the tables' fields and nothing more (hostile.md P05)."""

import copy
import json
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.load.client.engine import HttpEngine
from app.serve.fields.ignored import MAX_HEADER_CHARS
from app.serve.fields.refused import REFUSED
from app.serve.relay import Relay, only
from app.serve.request_load import Kind
from app.serve.routing_table import RoutingTable
from tests.support.known_fields import FREE, SENT, surplus
from tests.support.simulator import MODEL, Simulator

LEAK = "LEAK-a5d3"

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"x": LEAK[:4]}, "strict": True},
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEXT = {"type": "text", "text": "x"}
OF_BOTH: dict[str, Any] = {
    "temperature": 0.5,
    "stop": ["x"],
    "max_tokens": 8,
    "logit_bias": {"5": 1},
    "structured_outputs": {"regex": "a+"},
    "stream_options": {"include_usage": True},
    "stream": True,
    "repetition_detection": {"max_pattern_size": 2, "min_count": 3},
}
BODIES: dict[Kind, list[dict[str, Any]]] = {
    "chat": [
        {
            **OF_BOTH,
            "messages": [
                {"role": "system", "content": "x"},
                {"role": "user", "content": [TEXT, {"type": "thinking", "thinking": "x"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "x"},
                {"role": "tool", "content": [{"type": "tool_reference", "name": "f"}], "tool_call_id": "c"},
                {"role": "developer", "content": "x", "tools": [TOOL]},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            "chat_template_kwargs": {"enable_thinking": True},
            "documents": [{"title": "x"}],
        },
    ],
    "completions": [{**OF_BOTH, "prompt": "x", "response_format": {"type": "text"}}, {"prompt": [1, 2]}],
    "responses": [
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
                {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
            ],
            "tools": [
                {"type": "function", "name": "f", "parameters": {}},
                {"type": "custom", "name": "g", "format": {"type": "text"}},
                {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "h"}]},
            ],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
            "reasoning": {"effort": "low"},
            "include": ["message.output_text.logprobs"],
        },
        {"input": "x"},
    ],
    "embeddings": [{"input": "x", "dimensions": 4}],
    "messages": [
        {
            "max_tokens": 8,
            "stream": True,
            "system": [TEXT],
            "messages": [
                {"role": "user", "content": [TEXT]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "x", "signature": "y"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c",
                            "content": [TEXT, {"type": "tool_reference", "tool_name": "f"}],
                        },
                        {"type": "tool_reference", "tool_name": "f"},
                    ],
                },
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f"},
            "thinking": {"type": "adaptive"},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
        {"max_tokens": 8, "messages": [{"role": "user", "content": "x"}]},
    ],
    "count_tokens": [{"messages": [{"role": "user", "content": "x"}], "system": "x", "thinking": {"type": "adaptive"}}],
    "tokenize": [
        {"prompt": "x", "return_token_strs": True},
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}], "tools": [TOOL]},
    ],
    "detokenize": [{"tokens": [65, 66]}],
}
ANSWERED_FOR = frozenset(
    {
        *("annotations", "logprobs", "reasoning_content", "store", "background", "prompt", "conversation", "metadata"),
        *("previous_response_id", "user", "service_tier", "safety_identifier", "prompt_cache_key", "grammar"),
    }
)
"""Names that the tables have and the engine does not get: labels, refused references."""

MEDIA = frozenset(
    {
        *("audio_embeds", "audio_url", "file", "image_embeds", "image_pil", "image_url", "input_audio", "input_image"),
        *("prompt_embeds", "video_embeds", "video_url"),
    }
)
NAMES = st.text(min_size=0, max_size=8) | st.sampled_from(
    ["cache_control", "index", "chat_template", "path", "_backend", "tools", "content", "x-y", "a\r\nb: c", "__class__"]
)
VALUES = st.sampled_from([LEAK, [LEAK], {LEAK: LEAK}, {"a": [{"b": LEAK}]}, 5, "\ud800", 1e308, True, [[]] * 50])


def objects(value: Any, form: Any) -> list[tuple[dict[str, Any], frozenset[str]]]:
    """Objects in a body whose members are known, and the names that must not be added to each."""
    forms = form if isinstance(form, tuple) else (form,)
    if isinstance(value, list):
        return [found for item in value for one in forms if isinstance(one, list) for found in objects(item, one[0])]
    named = [one for one in forms if isinstance(one, dict)]
    if not isinstance(value, dict) or not named or FREE in forms:
        return []
    known = frozenset().union(*named)
    found = [(value, known | ANSWERED_FOR | MEDIA)]
    for key, item in value.items():
        within = tuple(one[key] for one in named if key in one)
        flat = tuple(part for one in within for part in (one if isinstance(one, tuple) else (one,)))
        found += objects(item, flat)
    return found


@st.composite
def padded(draw: st.DrawFn) -> tuple[Kind, dict[str, Any], dict[str, Any]]:
    """A body, and the same with members added that no table has, wherever there is an object."""
    kind: Kind = draw(st.sampled_from(get_args(Kind)))
    plain = draw(st.sampled_from(BODIES[kind]))
    full = copy.deepcopy(plain)
    places = objects(full, SENT[kind])
    for _ in range(draw(st.integers(1, 12))):
        where, taken = draw(st.sampled_from(places))
        name = draw(NAMES)
        if name not in taken and not (where is full and name in REFUSED):
            where[name] = draw(VALUES)
    return kind, plain, full


def test_unknown_members_are_added_in_objects_of_every_sort() -> None:
    for kind, bodies in BODIES.items():
        assert all(len(objects(body, SENT[kind])) >= 1 for body in bodies)
    assert len(objects(BODIES["chat"][0], SENT["chat"])) > 20
    assert len(objects(BODIES["responses"][0], SENT["responses"])) > 15
    assert len(objects(BODIES["messages"][0], SENT["messages"])) > 15


@pytest.mark.hostile("P05")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=padded())
async def test_the_engine_receives_what_the_tables_have_and_nothing_else(
    simulator: Simulator, simulated_client: HttpEngine, case: tuple[Kind, dict[str, Any], dict[str, Any]]
) -> None:
    kind, plain, full = case
    simulator.embeds = True
    relay = Relay(only(simulated_client), RoutingTable(MODEL))

    async def received(body: dict[str, Any]) -> tuple[Any, str]:
        answer = await relay.complete(kind, json.dumps({"model": MODEL, **body}).encode())
        assert answer.status == 200
        if not isinstance(answer.body, bytes):
            await answer.body.aclose()
        return simulator.seen.pop(), answer.ignored

    expected, named = await received(plain)
    assert named == ""
    seen, named = await received(full)
    assert seen == expected
    assert surplus(seen, SENT[kind]) == []
    assert LEAK not in json.dumps(seen)
    assert named.isascii()
    assert named.isprintable() or named == ""
    assert len(named) <= MAX_HEADER_CHARS
    assert bool(named) == (full != plain)


def test_the_oracle_sees_what_is_too_much() -> None:
    call = CALL | {"index": 0}
    message = {"role": "user", "content": "x", "tool_calls": [call], "x": 1}
    found = [".messages[].tool_calls[].index", ".messages[].x", ".y"]
    assert surplus({"messages": [message], "y": 1}, SENT["chat"]) == found
    assert surplus({"messages": [{"content": [TEXT | {"x": 1}]}]}, SENT["chat"]) == [".messages[].content"]
    assert surplus({"prompt": [[1], [2]], "stop": {"a": 1}}, SENT["completions"]) == [".stop"]
