"""Large request bodies of many shapes, at the caps and beyond: for tests of time and memory."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from app.serve.fields.tokens import MAX_TOKENIZED_BYTES
from app.serve.json_body import MAX_BODY_BYTES, MAX_CONVERSATION_VALUES, MAX_VALUES
from app.serve.request_load import Kind

ROOM = MAX_BODY_BYTES - 256


class Body(NamedTuple):
    """One body. name: what its shape is called in a test's report."""

    name: str
    kind: Kind
    raw: bytes


def filled(piece: bytes, separator: bytes = b"", most: int = 1 << 30) -> bytes:
    """As many of `piece` as the cap on bytes leaves room for."""
    return separator.join([piece] * min(most, ROOM // (len(piece) + len(separator))))


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PART = {"type": "text", "text": "x"}
RAW_ITEMS = (
    "0",
    "12345678",
    "1.2345678901234567e-30",
    "[]",
    "{}",
    '"a"',
    '{"a":1}',
    "null",
    "[[]]",
    "1" * 300,
    '"\\n"',
)
STRINGS = ("a", ",", "{", "\\\\", '\\"', "\\n", "\\u00e9", "\\ud83d\\ude00", "\\ud800", "é", "中", "😀", '\\\\\\"')
RESPONSE_ITEMS: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": "x"},
    *({"role": role, "content": [{"type": "input_text", "text": "x"}]} for role in ("user", "assistant", "developer")),
    *({"role": role, "content": [{"type": "output_text", "text": "x"}]} for role in ("user", "assistant", "system")),
    {"role": "assistant", "content": [{"type": "input_text", "text": "x"}, {"type": "output_text", "text": "x"}]},
    {"role": "assistant", "phase": "commentary", "content": [{"type": "output_text", "text": "x"}]},
    {"role": "user", "phase": "final_answer", "id": "m", "status": "in_progress", "content": "x"},
    {"role": "assistant", "status": "incomplete", "content": [{"type": "output_text", "text": "x"}] * 8},
    {"role": "assistant", "content": [{"type": "output_text", "text": "x", "logprobs": [{}] * 8}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [{}] * 8}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call", "id": "i", "status": "completed", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
    {"type": "function_call_output", "id": "i", "status": "incomplete", "call_id": "c", "output": "x"},
    {"type": "reasoning", "summary": []},
    {"type": "reasoning", "id": "r", "status": "completed", "summary": [{"type": "summary_text", "text": "x"}] * 4},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}] * 4},
    {"type": "reasoning", "summary": [{"type": "reasoning_text", "text": "x"}], "content": []},
    {"type": "reasoning", "encrypted_content": "x"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}] * 8},
    {"role": "assistant", "content": []},
    {"type": "function_call", "call_id": "c", "namespace": "n", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}] * 8},
    {"type": "custom_tool_call", "id": "i", "call_id": "c", "name": "f", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "x"},
    {"role": "user", "content": [{"type": "input_text", "text": "x", "cache_control": {}}] * 4, "extra": [{}] * 8},
)
MESSAGES: tuple[dict[str, Any], ...] = (
    *(
        {"role": role, "content": content, **more}
        for role in ("user", "assistant", "tool")
        for content in ("x", [PART] * 16)
        for more in (
            {"name": "n", "refusal": "no", "tool_call_id": "c"},
            {"tool_calls": [CALL] * 4},
            {"tool_calls": [{"function": CALL["function"]}]},
        )
    ),
    {"role": "user"},
    {"role": "ipython", "content": ["x"] * 16},
    {"role": "user", "content": [PART | {"cache_control": {}}] * 16, "extra": [{}] * 8},
    {"role": "assistant", "content": [], "tool_calls": [CALL | {"index": 0}] * 4, "reasoning_content": "x"},
    {"role": "assistant", "annotations": [], "function_call": None, "reasoning": "x"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "refusal", "refusal": "x"}] * 8},
)
BLOCKS: tuple[dict[str, Any], ...] = (
    PART,
    {"type": "thinking", "thinking": "x", "signature": "y", "cache_control": {}},
    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": [[]] * 8}},
    {"type": "tool_result", "tool_use_id": "c", "content": [PART] * 8},
    {"type": "image", "source": {"type": "base64", "data": ""}},
)
SCHEMA = {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 9} for i in range(2000)}}


def large_bodies() -> Iterator[Body]:
    """All of them, made one at a time."""
    for item in RAW_ITEMS:
        at, over = filled(item.encode(), b",", MAX_VALUES // 2 - 64), filled(item.encode(), b",")
        yield Body(f"prompt: {item[:9]}", "completions", b'{"model":"m","prompt":[%s]}' % at)
        few = filled(item.encode(), b",", MAX_CONVERSATION_VALUES // 2 - 64)
        yield Body(f"metadata: {item[:9]}", "chat", b'{"model":"m","metadata":[%s]}' % few)
        yield Body(f"over: {item[:9]}", "chat", b'{"model":"m","x":[%s]}' % over)
    for text in STRINGS:
        yield Body(f"text of {text}", "completions", b'{"model":"m","prompt":"%s"}' % filled(text.encode()))
    yield from _written()
    yield Body("deep lists", "chat", b'{"messages":' + b"[" * 16_000 + b"]" * 16_000 + b"}")
    yield Body("unknown members", "chat", b"{%s}" % b",".join(b'"k%d":[0]' % i for i in range(15_000)))
    unknown = b",".join(b'"k%d":0' % i for i in range(30_000))
    yield Body("unknown in a message", "chat", b'{"model":"m","messages":[{"role":"user","content":"x",%s}]}' % unknown)
    yield Body("members that are null", "chat", b"{%s}" % b",".join(b'"k%d":null' % i for i in range(30_000)))
    yield Body("one member again and again", "chat", b"{%s}" % filled(b'"k":1', b",", MAX_CONVERSATION_VALUES // 2))
    nulls = b",".join(b'"k%d":null' % i for i in range(30_000))
    yield Body("nulls in a message", "chat", b'{"model":"m","messages":[{"role":"user","content":"x",%s}]}' % nulls)
    yield Body(
        "unfinished", "chat", b'{"model":"m","messages":[' + filled(b'{"role":"user","content":"x"}', b",") + b"}"
    )


def _written() -> Iterator[Body]:
    for number, item in enumerate(RESPONSE_ITEMS):
        yield _body(f"item {number}", "responses", input=_many(item))
    for number, message in enumerate(MESSAGES):
        yield _body(f"message {number}", "chat", messages=_many(message))
    hello: Any = {"messages": [{"role": "user", "content": "x"}]}
    part = [{"type": "output_text", "text": "x", "logprobs": [{}] * 15_000}]
    yield _body("log-probabilities", "responses", input=[{"role": "assistant", "content": part}])
    yield _body("token ids", "completions", prompt=[1 << 30] * (MAX_VALUES - 64))
    yield _body("lists of token ids", "completions", prompt=[[7] * 2000] * 64)
    yield _body("texts", "completions", prompt=["x" * 60_000] * 64)
    for number, block in enumerate(BLOCKS):
        message = {"role": "user", "content": [block] * 16}
        yield _body(f"block {number}", "messages", max_tokens=8, messages=_many(message))
    yield _body("a text to be tokenized", "tokenize", prompt="x" * (MAX_TOKENIZED_BYTES - 64))
    yield _body("a text that is too long to be tokenized", "tokenize", prompt="x" * MAX_TOKENIZED_BYTES)
    yield _body("tokens to be put together", "detokenize", tokens=[65] * (MAX_VALUES - 64))
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    yield _body("tools", "chat", **hello, tools=[tool] * 2, tool_choice="required")
    yield _body("biases", "chat", **hello, logit_bias={str(i): 1.5 for i in range(30_000)})
    fractions = {"type": "object", "default": [1.2345678901234567e-30] * 9000}
    tool = {"type": "function", "function": {"name": "f", "parameters": fractions}}
    yield _body("tools with fractions", "chat", **hello, tools=[tool] * 3)
    format_ = {"type": "json_schema", "json_schema": {"name": "s", "schema": fractions}}
    yield _body("fractions in a schema", "chat", **hello, response_format=format_)


def _many(item: dict[str, Any]) -> list[dict[str, Any]]:
    """As many as the caps on items and values leave room for."""
    return [item] * min(4096, (MAX_CONVERSATION_VALUES - 64) // _values(item))


def _values(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 2 + sum(map(_values, inner)) if isinstance(value, dict | list) else 1


def _body(name: str, kind: Kind, **fields: Any) -> Body:
    return Body(name, kind, json.dumps({"model": "m", **fields}).encode())
