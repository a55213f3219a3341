"""Bodies of inference requests: what goes on to the engine, and everything that does not (hostile.md P05–P08)."""

import json
import string
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, Refused
from app.serve.fields.chat import CHAT, COMPLETIONS, DROPPED_FIELDS, MAX_MESSAGES
from app.serve.fields.responses import EMBEDDINGS, RESPONSES
from app.serve.fields.validators import MAX_SCHEMA_DEPTH
from app.serve.json_body import MAX_BODY_BYTES
from app.serve.request import Kind, parse

MESSAGES = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def chat(**more: Any) -> bytes:
    return json.dumps({"model": "a", "messages": MESSAGES} | more).encode()


def completion(**more: Any) -> bytes:
    return json.dumps({"model": "a", "prompt": "hello"} | more).encode()


def refused(kind: Kind, raw: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(kind, raw)
    return caught.value


@pytest.mark.parametrize(
    ("options", "to_the_engine"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}),
        (
            {"include_usage": True, "continuous_usage_stats": True},
            {"include_usage": True, "continuous_usage_stats": True},
        ),
    ],
)
def test_counts_are_asked_for_at_the_end_and_more_only_for_who_wants_it(options: object, to_the_engine: object) -> None:
    inference = parse("chat", chat(stream=True, **({} if options is None else {"stream_options": options})))
    assert json.loads(inference.encode("a@1"))["stream_options"] == to_the_engine


def test_a_request_is_written_anew_under_the_engines_name() -> None:
    inference = parse("chat", b' {"messages" : [{"role":"user","content":"h\\u00e9 \\ud83d\\ude00"}], "model":"a"}\n')
    assert inference.model == "a"
    written = inference.encode("a@000000000001")
    assert written == '{"model":"a@000000000001","messages":[{"role":"user","content":"hé 😀"}]}'.encode()


GOOD_CHAT: list[dict[str, Any]] = [
    {"max_tokens": 5, "temperature": 0, "top_p": 1, "n": 2, "stop": "x", "seed": -1, "user": "u"},
    {"max_completion_tokens": 5, "stop": ["x", "y"], "presence_penalty": -2, "frequency_penalty": 2.0},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": False, "logprobs": True, "top_logprobs": 5, "logit_bias": {"12": -100, "13": 1.5}},
    {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(20), "strict": True}}},
    {"response_format": {"type": "json_object"}},
    {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [1], "ignore_eos": True, "min_tokens": 1},
    {"skip_special_tokens": False, "bad_words": ["x"], "allowed_token_ids": [1, 2], "reasoning_effort": "low"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]},
    {"messages": [{"role": "assistant", "content": None, "refusal": None, "audio": None, "tool_calls": None}]},
]


@pytest.mark.parametrize("more", GOOD_CHAT)
def test_openais_fields_and_vllms_extras_pass(more: dict[str, Any]) -> None:
    written = json.loads(parse("chat", chat(**more)).encode("x"))
    passed = {key: value for key, value in ({"messages": MESSAGES} | more).items() if key not in DROPPED_FIELDS}
    passed["messages"] = [{key: said for key, said in one.items() if said is not None} for one in passed["messages"]]
    assert written == {"model": "x"} | passed


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2, 3]},
        {"prompt": [[1], [2, 3]]},
        {"echo": True, "logprobs": 5, "max_tokens": 0},
        {"suffix": "x", "add_special_tokens": False},
    ],
)
def test_completions_take_text_and_token_ids(more: dict[str, Any]) -> None:
    assert json.loads(parse("completions", completion(**more)).encode("x")).items() >= more.items()


def test_null_says_nothing_and_labels_are_not_passed_on() -> None:
    labels = {"user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"}
    inference = parse("chat", chat(temperature=None, n=None, stream_options=None, **labels))
    assert inference.fields == {"messages": MESSAGES}


@pytest.mark.parametrize(
    "field",
    [
        *("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs", "mm_payload"),
        *("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "priority", "cache_salt", "request_id"),
        *("prompt_logprobs", "logits_processors", "prompt_embeds", "structured_outputs", "guided_json", "documents"),
        *("use_beam_search", "best_of", "return_token_ids", "session_id", "truncate_prompt_tokens", "functions"),
        *(
            "echo",
            "add_generation_prompt",
            "continue_final_message",
            "lora_path",
            "load_inplace",
            "",
            "Model",
            "model ",
        ),
    ],
)
@pytest.mark.parametrize("value", [1, None, {}, "x"])
@pytest.mark.hostile("P05")
def test_a_field_not_on_the_table_is_refused_by_name_even_null(field: str, value: Any) -> None:
    error = refused("chat", chat(**{field: value}))
    assert (error.code, error.param) == (INVALID_REQUEST, field)


def each(field: str, *values: Any) -> list[tuple[str, Any]]:
    return [(field, value) for value in values]


BAD_CHAT: list[tuple[str, Any]] = [
    *each("max_tokens", 10**9, -1, 1.5, "5", True, []),
    *each("max_completion_tokens", 0, 10**9),
    *each("n", 0, 17, 16384, True),
    *each("temperature", -0.1, 2.1, "0", True, []),
    *each("top_logprobs", 21, -1, True),
    *each("stop", ["x"] * 17, ["x" * 257], "x" * 257, [""], "", 1, [1]),
    *each("logit_bias", {"x": 1}, {"1": 101}, {"1": True}, {str(i): 0 for i in range(301)}, [], {"-1": 0}),
    *each("seed", 2**63, -(2**63) - 1, 0.5),
    *each("stream", 1, "true"),
    *each("tools", [TOOL] * 129, [{}], [{"type": "code"}], [TOOL | {"x": 1}], {}),
    *each("tool_choice", "x", {"type": "function"}, 1),
    *each("response_format", {}, {"type": "structural_tag"}, {"type": "text", "x": 1}, "text"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(MAX_SCHEMA_DEPTH + 1)}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": [0] * 20_000}}}),
    ("stop_token_ids", [0] * 257),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [2**31]),
    *each("messages", [], {}, "x", [1], [{}], [{"role": "user"}], [{"content": "x"}], None),
    *(
        ("messages", [{"role": "user", "content": content}])
        for content in (
            1,
            [],
            [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}],
            [{"type": "text", "text": "x", "image_url": {"url": "http://h"}}],
            [{"type": "text"}],
            [{"type": "input_audio", "input_audio": {}}],
            [{"type": "file", "file": {"file_id": "1"}}],
            ["x"],
            [{"type": "text", "text": "x"}] * 257,
        )
    ),
    ("messages", [{"role": "root", "content": "x"}]),
    ("messages", [{"role": "user", "content": "x", "path": "/etc/passwd"}]),
    ("messages", [{"role": "assistant", "tool_calls": [CALL] * 129}]),
    ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": "a b", "arguments": ""}}]}]),
    ("stream_options", {"include_usage": True}),  # without stream
    ("metadata", nested(MAX_SCHEMA_DEPTH + 1)),
    ("user", "x" * 513),
]


@pytest.mark.parametrize(("field", "value"), BAD_CHAT)
@pytest.mark.hostile("P06", "P07")
def test_a_value_beyond_its_cap_or_of_another_type_is_refused_by_name(field: str, value: Any) -> None:
    error = refused("chat", chat(**{field: value}))
    assert (error.code, error.param) == (INVALID_REQUEST, field)


@pytest.mark.parametrize("prompt", ["", [], [[]], [""] * 65, [1, "a"], ["a", 1], [True], [-1], [2**31], {}, 5, None])
def test_a_prompt_is_text_or_token_ids(prompt: Any) -> None:
    error = refused("completions", completion(prompt=prompt))
    assert (error.code, error.param) == (INVALID_REQUEST, "prompt")


def test_chat_has_no_prompt_and_completions_no_messages() -> None:
    assert refused("chat", completion()).param == "prompt"
    assert refused("completions", chat()).param == "messages"
    assert refused("chat", b'{"model":"a"}').param == "messages"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"{}x",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"\xc3\x28",
        b'{"model":"a","model":"b","messages":[]}',
        b'{"model":"a","messages":[{"role":"user","content":"x","content":"y"}]}',
        b'{"model":"a","temperature":NaN}',
        b'{"model":"a","temperature":Infinity}',
        b'{"model":"a","temperature":1e999,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"a","seed":' + b"9" * 5000 + b"}",
        b'{"model":"a","metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 1_000_000,
        b'{"a":' * 300_000,
    ],
)
@pytest.mark.hostile("P08")
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    assert refused("chat", raw).code is INVALID_REQUEST


def test_text_that_is_not_unicode_is_refused_when_written() -> None:
    inference = parse("chat", b'{"model":"a","messages":[{"role":"user","content":"\\ud800"}]}')
    with pytest.raises(Refused) as caught:
        inference.encode("x")
    assert caught.value.code is INVALID_REQUEST


def test_numbers_hidden_in_a_schema_are_finite_when_written() -> None:
    raw = chat(tools=[TOOL]).replace(b'{"type": "object"}', b'{"maximum": 1e999}')
    with pytest.raises(Refused):
        parse("chat", raw).encode("x")


@pytest.mark.hostile("P08")
def test_too_much_is_a_413() -> None:
    assert refused("chat", b" " * (MAX_BODY_BYTES + 1)).code is REQUEST_TOO_LARGE
    many = [{"role": "user", "content": ""}] * (MAX_MESSAGES + 1)
    error = refused("chat", chat(messages=many))
    assert (error.code, error.param) == (REQUEST_TOO_LARGE, "messages")


def test_top_logprobs_needs_logprobs() -> None:
    assert refused("chat", chat(top_logprobs=2)).param == "top_logprobs"
    assert refused("chat", chat(top_logprobs=2, logprobs=False)).param == "top_logprobs"


def test_errors_about_hostile_names_are_short_and_printable() -> None:
    error = refused("chat", chat(**{"\x1b[31m\n<script>" + "x" * 100_000: 1}))
    assert error.message.isprintable()
    assert len(error.message) < 200
    assert len(str(error.param)) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_lowercase, max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


TABLES: dict[str, Any] = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES, "embeddings": EMBEDDINGS}
FIELDS = sorted({field for table in (*TABLES.values(), DROPPED_FIELDS) for field in table})


@given(kind=st.sampled_from(get_args(Kind)), field=st.sampled_from(FIELDS), value=JSON)
def test_nothing_but_a_refusal_escapes(kind: Kind, field: str, value: Any) -> None:
    required: dict[str, Any] = {"messages": MESSAGES} if kind == "chat" else {"prompt": "x"}
    if kind in ("responses", "embeddings"):
        required = {"input": "x"}
    try:
        written = parse(kind, json.dumps({"model": "a"} | required | {field: value}).encode()).encode("engine")
    except Refused:
        return
    again = json.loads(written)
    assert again.pop("model") == "engine"
    assert again.pop("store", False) is False
    assert set(again) <= set(TABLES[kind]) - set(DROPPED_FIELDS)


@pytest.mark.hostile("P16")
@pytest.mark.parametrize(
    "more",
    [
        {"prompt": ["x"] * 64, "n": 2},
        {"prompt": ["x"] * 5, "n": 16},
        {"prompt": [[1]] * 33, "n": 2},
        {"prompt": ["x"] * 64, "max_tokens": (1 << 14) + 1},
        {"prompt": "x", "n": 16, "max_tokens": 1 << 17},
    ],
)
def test_caps_that_multiply_have_a_cap_on_their_product(more: dict[str, Any]) -> None:
    error = refused("completions", completion(**more))
    assert (error.code, error.param) == (INVALID_REQUEST, "max_tokens" if "max_tokens" in more else "n")


def test_a_request_says_what_it_asks_of_the_engine() -> None:
    load = parse("completions", completion(prompt=["x"] * 4, n=2, max_tokens=7)).load
    assert (load.sequences, load.tokens, load.schemas) == (8, 56, 0)
    assert parse("chat", chat(n=3, max_completion_tokens=5, max_tokens=9)).load.tokens == 15
    assert parse("embeddings", b'{"model":"a","input":["x","y"]}').load.sequences == 2
