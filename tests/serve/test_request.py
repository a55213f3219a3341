"""Bodies of inference requests: what goes on to the engine, and everything that does not (hostile.md P05–P08)."""

import json
import string
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, Refused
from app.serve.fields.chat import DROPPED_FIELDS
from app.serve.fields.ignored import MAX_HEADER_CHARS
from app.serve.fields.messages import MAX_MESSAGES
from app.serve.fields.refused import REFUSED
from app.serve.fields.validators import MAX_SCHEMA_DEPTH
from app.serve.json_body import MAX_BODY_BYTES
from app.serve.request import TABLES, parse
from app.serve.request_load import Kind
from tests.support.known_fields import SENT, invented, surplus

MESSAGES = [{"role": "user", "content": "hello"}]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

REQUIRED: dict[str, dict[str, Any]] = {
    "chat": {"messages": MESSAGES},
    "completions": {"prompt": "x"},
    "responses": {"input": "x"},
    "embeddings": {"input": "x"},
    "messages": {"messages": MESSAGES, "max_tokens": 8},
    "count_tokens": {"messages": MESSAGES},
    "tokenize": {"prompt": "x"},
    "detokenize": {"tokens": [1]},
}


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


CONSTRAINTS: dict[str, Any] = {"json": {"type": "object"}, "regex": "[a-z]+", "choice": ["a", "b"], "json_object": True}
TAGS: dict[str, Any] = {
    "type": "triggered_tags",
    "triggers": ["<f"],
    "tags": [
        {
            "type": "tag",
            "begin": "<f>",
            "content": {
                "type": "sequence",
                "elements": [{"type": "json_schema", "json_schema": {}}, {"type": "any_text"}],
            },
            "end": ["</f>"],
        }
    ],
    "at_least_one": True,
}
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
    {"chat_template_kwargs": {"enable_thinking": False, "budget": 5, "style": "x", "none": None, "share": 0.5}},
    {"continue_final_message": True, "add_generation_prompt": False, "echo": False, "add_special_tokens": True},
    {"truncate_prompt_tokens": -1, "truncation_side": "left", "prompt_logprobs": 3, "return_token_ids": True},
    {"use_beam_search": True, "n": 8, "max_tokens": 1024, "length_penalty": 0.5},
    {"include_reasoning": False, "thinking_token_budget": 0, "return_tokens_as_token_ids": True},
    {"documents": [{"title": "t", "text": "x"}], "logprobs": True, "logprob_token_ids": [1, 2]},
    {"repetition_detection": {"max_pattern_size": 8, "min_pattern_size": 1, "min_count": 4}, "stream_interval": 4},
    *({"reasoning_effort": effort} for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    *({"structured_outputs": {name: value}} for name, value in CONSTRAINTS.items()),
    {"structured_outputs": {"json": nested(3), "disable_any_whitespace": True, "whitespace_pattern": " ?"}},
    {"response_format": {"type": "structural_tag", "format": TAGS}},
    {
        "response_format": {
            "type": "structural_tag",
            "structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}],
            "triggers": ["<f"],
        }
    },
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


DANGEROUS = (
    *("chat_template", "mm_processor_kwargs", "media_io_kwargs", "mm_payload", "kv_transfer_params", "vllm_xargs"),
    *("ec_transfer_params", "priority", "cache_salt", "request_id", "logits_processors", "prompt_embeds", "session_id"),
    *("previous_input_messages", "watermarking"),
)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("field", DANGEROUS)
@pytest.mark.parametrize("value", [1, None, {}, "x"])
@pytest.mark.hostile("P05")
def test_a_field_that_endangers_others_is_refused_by_name_even_null(kind: Kind, field: str, value: Any) -> None:
    error = refused(kind, json.dumps({"model": "a", **REQUIRED[kind], field: value}).encode())
    assert (error.code, error.param) == (INVALID_REQUEST, field)
    assert set(DANGEROUS) == set(REFUSED)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(
    ("field", "named"),
    [
        *((name, name) for name in ("guided_json", "best_of", "functions", "lora_path", "load_inplace", "Model")),
        *((name, name) for name in ("modalities", "prediction", "web_search_options", "routed_experts_prompt_start")),
        ("", "?"),
        ("model ", "model?"),
        ("a,b", "a?b"),
        ("x\r\nset-cookie: a=b", "x??set-cookie??a?b"),
        ("\u00e9\u2028\U0001f600\ud800", "????"),
        ("x" * 100_000, "x" * 48 + "..."),
    ],
)
@pytest.mark.parametrize("value", [1, {}, "x", [{"a": ["\ud800"]}]])
@pytest.mark.hostile("P05")
def test_a_field_on_no_table_is_left_out_and_named(kind: Kind, field: str, named: str, value: Any) -> None:
    inference = parse(kind, json.dumps({"model": "a", **REQUIRED[kind], field: value}).encode())
    assert inference.ignored == named
    assert inference.fields == REQUIRED[kind]


def test_a_field_on_no_table_that_is_null_says_nothing() -> None:
    assert parse("chat", chat(best_of=None, messages=[{"role": "user", "content": "x", "audio": None}])).ignored == ""


def test_of_many_unknown_fields_a_few_are_named() -> None:
    inference = parse("chat", chat(**{f"{'x' * 60}{number}": number for number in range(30_000)}))
    assert inference.fields == {"messages": MESSAGES}
    long = parse("chat", chat(**{f"{number:02}{'x' * 60}": number for number in range(60)}))
    for text in (inference.ignored, long.ignored):
        assert len(text) <= MAX_HEADER_CHARS
        assert text.endswith(", ...")
        assert text.isascii()
        assert text.isprintable()
    assert long.ignored.startswith(f"00{'x' * 46}..., 01{'x' * 46}..., ")


CACHED = {"cache_control": {"type": "ephemeral"}}
UNKNOWN_WITHIN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"messages": [{"role": "user", "content": "x", "path": "/etc/passwd", **CACHED}]},
        {"messages": [{"role": "user", "content": "x"}]},
        "messages[].path, messages[].cache_control",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", **CACHED}] * 9}] * 9},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 9}] * 9},
        "messages[].content[].cache_control",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [CALL | {"index": 0, "function": CALL["function"] | {"x": 1}}]}
            ]
        },
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}]},
        "messages[].tool_calls[].function.x, messages[].tool_calls[].index",
    ),
    (
        {"tools": [TOOL | {"x": 1, "function": TOOL["function"] | {"y": 2}}]},
        {"messages": MESSAGES, "tools": [TOOL]},
        "tools[].function.y, tools[].x",
    ),
    (
        {"response_format": {"type": "text", "x": 1}},
        {"messages": MESSAGES, "response_format": {"type": "text"}},
        "response_format.x",
    ),
    (
        {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": True}},
        {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}},
        "stream_options.include_obfuscation",
    ),
    (
        {"structured_outputs": {"regex": "a+", "backend": "x", "_backend": "x"}},
        {"messages": MESSAGES, "structured_outputs": {"regex": "a+"}},
        "structured_outputs.backend, structured_outputs._backend",
    ),
]


@pytest.mark.parametrize(("more", "passed", "named"), UNKNOWN_WITHIN)
def test_unknown_members_are_left_out_at_any_depth_and_named_by_their_path(
    more: dict[str, Any], passed: dict[str, Any], named: str
) -> None:
    inference = parse("chat", chat(**more))
    assert inference.fields == passed
    assert inference.ignored == named


HISTORY: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"role": "assistant", "content": "x", "reasoning": "why"},
        {"role": "assistant", "content": "x", "reasoning": "why"},
    ),
    ({"role": "assistant", "reasoning_content": "why"}, {"role": "assistant", "reasoning": "why"}),
    ({"role": "assistant", "reasoning_content": "b", "reasoning": "a"}, {"role": "assistant", "reasoning": "a"}),
    (
        {"role": "assistant", "content": "x", "annotations": [], "refusal": None, "audio": None, "function_call": None},
        {"role": "assistant", "content": "x"},
    ),
    (
        {"role": "assistant", "content": "x", "provider_specific_fields": {"a": 1}},
        {"role": "assistant", "content": "x"},
    ),
    ({"role": "assistant", "content": []}, {"role": "assistant", "content": []}),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "assistant", "tool_calls": [CALL]}),
    ({"role": "ipython", "content": "x"}, {"role": "ipython", "content": "x"}),
    ({"role": "user"}, {"role": "user"}),
    ({"role": "user", "content": ["x"]}, {"role": "user", "content": [{"type": "text", "text": "x"}]}),
    (
        {"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "output_text", "text": "y"}]},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
    ),
    (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "closed": True, "signature": "s"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "closed": True}]},
    ),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ),
    (
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "tool_reference", "name": "f"}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "tool_reference", "name": "f"}]},
    ),
    ({"role": "developer", "content": "x", "tools": [TOOL]}, {"role": "developer", "content": "x", "tools": [TOOL]}),
]


@pytest.mark.parametrize(("said", "passed"), HISTORY)
def test_the_engines_answers_come_back_as_history(said: dict[str, Any], passed: dict[str, Any]) -> None:
    assert parse("chat", chat(messages=[*MESSAGES, said])).fields["messages"] == [*MESSAGES, passed]


@pytest.mark.parametrize(
    ("more", "passed"),
    [
        ({"max_tokens": 100.0, "n": 2e0, "stop_token_ids": [1.0]}, {"max_tokens": 100, "n": 2, "stop_token_ids": [1]}),
        ({"max_tokens": -1, "max_completion_tokens": -1.0}, {}),
        ({"tools": [], "tool_choice": "auto"}, {}),
        ({"tools": [{"function": {"name": "f"}}]}, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
)
def test_numbers_and_lists_that_clients_write_otherwise(more: dict[str, Any], passed: dict[str, Any]) -> None:
    fields = parse("chat", chat(**more)).fields
    assert fields == {"messages": MESSAGES} | passed
    assert "." not in json.dumps(fields)


def each(field: str, *values: Any) -> list[tuple[str, Any]]:
    return [(field, value) for value in values]


BAD_CONTENT: list[Any] = [
    1,
    {},
    [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}],
    [{"type": "text", "text": "x", "image_url": {"url": "http://h"}}],
    [{"type": "text"}],
    [{"type": "input_audio", "input_audio": {}}],
    [{"type": "file", "file": {"file_id": "1"}}],
    [{"type": "text", "text": "x", "prompt_embeds": None}],
    [{"type": "image_embeds", "image_embeds": "AA=="}],
    [{"type": "redacted_thinking", "data": "x"}],
    [{"type": ["text"], "text": "x"}],
    [1],
    [{"type": "text", "text": "x"}] * 257,
]
BAD_CHAT: list[tuple[str, Any]] = [
    *each("max_tokens", 10**9, -2, 1.5, "5", True, []),
    *each("max_completion_tokens", 0, 10**9),
    *each("n", 0, 17, 16384, True),
    *each("temperature", -0.1, 2.1, "0", True, []),
    *each("top_logprobs", 21, -1, True),
    *each("stop", ["x"] * 17, ["x" * 257], "x" * 257, [""], "", 1, [1]),
    *each("logit_bias", {"x": 1}, {"1": 101}, {"1": True}, {str(i): 0 for i in range(301)}, [], {"-1": 0}),
    *each("seed", 2**63, -(2**63) - 1, 0.5),
    *each("stream", 1, "true"),
    *each("tools", [TOOL] * 129, [{}], [{"type": "code"}], [TOOL | {"type": "code"}], {}),
    *each("tool_choice", "x", {"type": "function"}, 1),
    *each("response_format", {}, {"type": "structural_tag"}, {"type": "x"}, {"type": []}, "text"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(MAX_SCHEMA_DEPTH + 1)}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": [0] * 20_000}}}),
    ("stop_token_ids", [0] * 257),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [2**31]),
    *each("messages", [], {}, "x", [1], [{}], [{"role": 1}], [{"content": "x"}], None),
    *(("messages", [{"role": "user", "content": content}]) for content in BAD_CONTENT),
    ("messages", [{"role": "r" * 65, "content": "x"}]),
    ("messages", [{"role": "assistant", "tool_calls": [CALL] * 129}]),
    ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": "a b", "arguments": ""}}]}]),
    *each("chat_template_kwargs", 1, [], {"a": {}}, {"a": []}, {"a": ["x"]}, {"a b": 1}, {"": 1}, {"a": "x" * 1025}),
    *each("chat_template_kwargs", {f"a{i}": 1 for i in range(33)}, {"a": 2**70}, {"tools": "x"}, {"documents": None}),
    *each("chat_template_kwargs", {"chat_template": "{{ messages }}"}, {"tokenize": False}, {"conversation": "x"}),
    *each("documents", [{}] * 65, ["x"], [{"text": 1}], [{"a": {"b": "c"}}], [{f"a{i}": "x" for i in range(17)}], {}),
    *each("structured_outputs", {}, {"grammar": "root ::= root root"}, {"json": {}, "regex": "a"}, {"json": "{"}, "x"),
    *each("structured_outputs", {"choice": []}, {"regex": "a" * 1025}, {"json": 1}, {"structural_tag": "{}"}),
    *each("structured_outputs", {"json": '{"a": 1, "a": 2}'}, {"json": '"\\ud800'}, {"structural_tag": {"format": {}}}),
    *each("prompt_logprobs", -1, 21, True),
    *each("use_beam_search", True, 1, "true"),
    *each("reasoning_effort", "most", "", 1),
    *each("truncate_prompt_tokens", -2, 10**9),
    *each("logprob_token_ids", [1] * 129, [-1]),
    *each("repetition_detection", {"max_pattern_size": 65}, {"min_count": 10**6}, []),
    *each("stream_interval", 0, 10**6),
    *each("thinking_token_budget", -2, 1.5, True),
    *each("length_penalty", 1e300, "1"),
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
    assert refused("chat", completion()).param == "messages"
    assert refused("completions", chat()).param == "prompt"
    assert parse("chat", chat(prompt="x")).ignored == "prompt"
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
        b'{"model":"a","metadata":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
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
    hostile = "\x1b[31m\n<script>" + "x" * 100_000
    error = refused("chat", chat(chat_template_kwargs={hostile: 1}))
    assert parse("chat", chat(**{hostile: 1})).ignored.isprintable()
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


FIELDS = sorted({field for table in (*TABLES.values(), DROPPED_FIELDS) for field in table})


@given(kind=st.sampled_from(get_args(Kind)), field=st.sampled_from(FIELDS), value=JSON)
def test_nothing_but_a_refusal_escapes(kind: Kind, field: str, value: Any) -> None:
    required = REQUIRED[kind]
    said = {"model": "engine"} | required | {field: value}
    try:
        written = parse(kind, json.dumps(said).encode()).encode("engine")
    except Refused:
        return
    again = json.loads(written)
    assert again["model"] == "engine"
    assert again.get("store", False) is False
    assert set(again) <= {"store", *TABLES[kind]} - (set(DROPPED_FIELDS) - {"store"})
    assert surplus(again, SENT[kind]) == []
    assert invented(again, [said, "engine"]) == []


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
