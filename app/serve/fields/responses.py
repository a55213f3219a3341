"""Fields of /v1/responses and /v1/embeddings requests, in tables like those of chat.py.

The gateway stores no responses: vLLM's own store does not separate tenants, so a guessed id would reveal another
tenant's conversation. The engine therefore always gets `store` as false, although its default is true, and a reference
to a stored response is refused.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.chat import (
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOKENS,
    MAX_TOOLS,
    MAX_USER_CHARS,
    function_name,
    logit_bias,
    prompt,
    schema,
)
from app.serve.fields.validators import (
    Check,
    boolean,
    dropped,
    integer,
    list_of,
    members,
    need,
    number,
    object_of,
    one_of,
    text,
)
from app.serve.json_body import MAX_VALUES

MAX_DIMENSIONS: Final = 1 << 16
"""Numbers in one embedding."""

KEPT_NOTHING: Final = "the gateway keeps no responses: send the whole conversation as `input`"


def _nothing_stored(value: Any) -> Any:
    need(value is False, KEPT_NOTHING)
    return value


def _anything(value: Any) -> Any:
    return value


_LABEL = text(MAX_USER_CHARS)
_STATUS = one_of("in_progress", "completed", "incomplete")
_INPUT_TEXT: Final[Mapping[str, Check]] = {"type": one_of("input_text"), "text": text()}
_OUTPUT_TEXT: Final[Mapping[str, Check]] = {
    "type": one_of("output_text"),
    "text": text(),
    "annotations": dropped(list_of(_anything, 0, MAX_PARTS)),
    "logprobs": dropped(list_of(_anything, 0, MAX_VALUES)),
}
"""Text part of an earlier answer. Its annotations and log-probabilities do not reach the model and are dropped here."""


def _reasoning_texts(kind: str) -> Check:
    return list_of(object_of({"type": one_of(kind), "text": text()}, "type", "text"), 0, MAX_PARTS)


def _part(value: Any) -> Any:
    need(isinstance(value, dict) and value.get("type") in ("input_text", "output_text"), "takes only text parts")
    if value["type"] == "input_text":
        return members(value, _INPUT_TEXT, frozenset({"text"}))
    return {**members(value, _OUTPUT_TEXT, frozenset({"text"})), "annotations": []}


def _content(value: Any) -> Any:
    return value if isinstance(value, str) else list_of(_part, 1, MAX_PARTS)(value)


_COMMON: Final[Mapping[str, Check]] = {"type": text(64), "id": _LABEL, "status": _STATUS}
_MESSAGE = object_of(
    {
        **_COMMON,
        "role": one_of("user", "assistant", "system", "developer"),
        "content": _content,
        "phase": one_of("commentary", "final_answer"),
    },
    "role",
    "content",
)


def _message(value: Any) -> Any:
    """Check a message and return it in one of the two forms that vLLM's classes take.

    For an item in another form they write a megabyte of error messages.
    """
    found = _MESSAGE(value)
    parts = () if isinstance(found["content"], str) else found["content"]
    kinds = {part["type"] for part in parts}
    if "output_text" not in kinds:
        return {"type": "message", **{key: found[key] for key in ("role", "content", "phase") if key in found}}
    need(len(kinds) == 1, "content: takes parts of one type")
    need(found["role"] == "assistant", "content: takes parts of type output_text from an assistant only")
    return {"id": "msg", "status": "completed", **found, "type": "message"}


_REASONING = object_of(
    {**_COMMON, "summary": _reasoning_texts("summary_text"), "content": _reasoning_texts("reasoning_text")}, "summary"
)
_ITEMS: Final[Mapping[str, Check]] = {
    "message": _message,
    "function_call": object_of(
        {**_COMMON, "call_id": _LABEL, "name": function_name, "arguments": text()}, "call_id", "name", "arguments"
    ),
    "function_call_output": object_of({**_COMMON, "call_id": _LABEL, "output": text()}, "call_id", "output"),
    "reasoning": lambda value: {"id": "rs", **_REASONING(value)},
}


def _item(value: Any) -> Any:
    need(isinstance(value, dict), "must hold objects")
    kind = value.get("type", "message")
    need(isinstance(kind, str) and kind in _ITEMS, f"takes only items of type {', '.join(_ITEMS)}")
    return _ITEMS[kind](value)


def _input(value: Any) -> Any:
    if isinstance(value, str):
        need(value != "", "must not be empty")
        return value
    return list_of(_item, 1, MAX_MESSAGES)(value)


_TOOL = object_of(
    {
        "type": one_of("function"),
        "name": function_name,
        "description": text(),
        "parameters": schema,
        "strict": boolean,
    },
    "type",
    "name",
)
_CHOSEN = object_of({"type": one_of("function"), "name": function_name}, "type", "name")


def _tool_choice(value: Any) -> Any:
    return (one_of("none", "auto", "required") if isinstance(value, str) else _CHOSEN)(value)


_FORMAT = object_of(
    {
        "type": one_of("text", "json_object", "json_schema"),
        "name": function_name,
        "description": text(),
        "schema": schema,
        "strict": boolean,
    },
    "type",
)
_EFFORTS = one_of("none", "minimal", "low", "medium", "high")

RESPONSES: Final[Mapping[str, Check]] = {
    "model": lambda value: value,  # checked by RoutingTable.resolve
    "input": _input,
    "instructions": text(),
    "max_output_tokens": integer(1, MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(-1, MAX_TOKENS),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": logit_bias,
    "skip_special_tokens": boolean,
    "include_stop_str_in_output": boolean,
    "stream": boolean,
    "tools": list_of(_TOOL, 0, MAX_TOOLS),
    "tool_choice": _tool_choice,
    "parallel_tool_calls": boolean,
    "text": object_of({"format": _FORMAT, "verbosity": one_of("low", "medium", "high")}),
    "reasoning": object_of({"effort": _EFFORTS, "summary": one_of("auto", "concise", "detailed")}),
    "include": list_of(one_of("message.output_text.logprobs"), 0, 1),
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "truncation": one_of("auto", "disabled"),
    "store": _nothing_stored,
    "background": _nothing_stored,
    "previous_response_id": _nothing_stored,
    "conversation": _nothing_stored,
}

EMBEDDINGS: Final[Mapping[str, Check]] = {
    "model": lambda value: value,
    "input": prompt,
    "encoding_format": one_of("float", "base64"),
    "dimensions": integer(1, MAX_DIMENSIONS),
}
