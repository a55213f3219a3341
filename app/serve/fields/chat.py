"""Fields of chat and completion requests: one table for each, field → check of its value and size.

The fields are OpenAI's and vLLM's sampling extras. Any other field is refused, because vLLM reads some seventy more,
among them templates, paths and cache keys (hostile.md P05). The checked values are built anew for the engine, in shapes
that vLLM's own classes accept: for each item they do not accept, they write up to 100 KB of error messages.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.validators import (
    Check,
    boolean,
    free,
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

MAX_MESSAGES: Final = 4096
"""Messages in one conversation."""

MAX_PARTS: Final = 256
"""Text parts of one message."""

MAX_TOKENS: Final = 1 << 20
"""Tokens requested; longer than any context today. The engine's own bound is its context."""

MAX_CHOICES: Final = 16
"""Answers to one prompt (`n`), each with its own place in the engine's batch."""

MAX_PROMPTS: Final = 64
"""Prompts in one completion request."""

MAX_SEQUENCES: Final = 64
"""Prompts × n of one request: each is a place in the engine's batch."""

MAX_ALL_TOKENS: Final = 1 << 20
"""Prompts × n × requested tokens, of one request."""

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
"""Stop strings, and characters of each; OpenAI takes 4 strings."""

MAX_LOGPROBS: Final = 20
"""Log-probabilities per token: OpenAI's and vLLM's bound."""

MAX_BIASES: Final = 300
"""Entries of logit_bias: OpenAI's bound."""

MAX_TOKEN_LIST: Final = 256
"""Token ids in stop_token_ids and the like."""

MAX_TOOLS: Final = 128
"""Tools, and tool calls of one message: OpenAI's bound."""

MAX_USER_CHARS: Final = 512
"""Characters of labels, such as `user` and the ids of tool calls."""

INT64: Final = 1 << 63
MAX_ID: Final = (1 << 31) - 1

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


def function_name(value: Any) -> Any:
    """Check the name of a function or a schema."""
    need(isinstance(value, str) and bool(_FUNCTION_NAME.fullmatch(value)), "must be 1 to 64 of A-Z a-z 0-9 _ . -")
    return value


def schema(value: Any) -> Any:
    """Check a JSON schema: free in form, but limited in depth and size."""
    need(isinstance(value, dict), "must be an object")
    return free(value)


def _stop(value: Any) -> Any:
    values = [value] if isinstance(value, str) else value
    list_of(text(MAX_STOP_CHARS), 0, MAX_STOPS)(values)
    need(all(values), "must not hold an empty string")
    return value


def logit_bias(value: Any) -> Any:
    """Check a map from token ids, as JSON keys, to numbers."""
    need(isinstance(value, dict) and len(value) <= MAX_BIASES, f"must be an object of at most {MAX_BIASES} entries")
    for key, bias in value.items():
        need(bool(_TOKEN_ID.fullmatch(key)), "must map token ids to numbers")
        number(-100, 100)(bias)
    return value


def prompt(value: Any) -> Any:
    """Check a prompt: a string, token ids, or a list of either."""
    if isinstance(value, str):
        need(value != "", "must not be empty")
        return value
    need(isinstance(value, list) and len(value) > 0, "must be a string, token ids, or a list of those")
    if isinstance(value[0], int):
        return _token_ids(value)
    return list_of(_token_ids if isinstance(value[0], list) else text(), 1, MAX_PROMPTS)(value)


_token_ids = list_of(integer(0, MAX_ID), 1, MAX_VALUES)


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return value
    need(isinstance(value, list) and 1 <= len(value) <= MAX_PARTS, f"must be text or 1 to {MAX_PARTS} text parts")
    return [_part(part) for part in value]


def _part(value: Any) -> Any:
    need(isinstance(value, dict) and value.get("type") == "text", "takes only parts of type text")
    return members(value, _TEXT_PART, frozenset({"text"}))


_TEXT_PART: Final[Mapping[str, Check]] = {"type": one_of("text"), "text": text()}
_CALL = object_of({"name": function_name, "arguments": text()}, "name", "arguments")
_TOOL_CALL_MEMBERS = object_of({"id": text(MAX_USER_CHARS), "type": one_of("function"), "function": _CALL}, "function")


def _tool_call(value: Any) -> Any:
    """Check a tool call, and add an id and a type if they are missing: vLLM refuses it otherwise."""
    return {"id": "", "type": "function", **_TOOL_CALL_MEMBERS(value)}


_MESSAGE: Final[Mapping[str, Check]] = {
    "role": one_of(*sorted(ROLES)),
    "content": _content,
    "name": text(64),
    "tool_calls": list_of(_tool_call, 0, MAX_TOOLS),
    "tool_call_id": text(MAX_USER_CHARS),
    "refusal": text(),
}


def _message(value: Any) -> Any:
    found = members(value, _MESSAGE, frozenset({"role"}))
    need(found["role"] == "assistant" or "content" in found, "lacks 'content'")
    return found


def _messages(value: Any) -> Any:
    need(isinstance(value, list) and len(value) > 0, "must be a list of messages")
    found = []
    for index, message in enumerate(value):
        try:
            found.append(_message(message))
        except ValueError as error:
            raise ValueError(f"message {index}: {error}") from error
    return found


_FUNCTION = object_of(
    {"name": function_name, "description": text(), "parameters": schema, "strict": boolean},
    "name",
)
_TOOL = object_of({"type": one_of("function"), "function": _FUNCTION}, "type", "function")
_CHOSEN = object_of({"type": one_of("function"), "function": object_of({"name": function_name}, "name")}, "function")


def _tool_choice(value: Any) -> Any:
    return (one_of("none", "auto", "required") if isinstance(value, str) else _CHOSEN)(value)


_JSON_SCHEMA = object_of(
    {"name": function_name, "description": text(), "schema": schema, "strict": boolean}, "name", "schema"
)
_RESPONSE_FORMAT = object_of(
    {"type": one_of("text", "json_object", "json_schema"), "json_schema": _JSON_SCHEMA}, "type"
)

_TOKEN_IDS = list_of(integer(0, MAX_ID), 0, MAX_TOKEN_LIST)

_BOTH: Final[Mapping[str, Check]] = {
    # OpenAI's
    "model": lambda value: value,  # checked by RoutingTable.resolve
    "max_tokens": integer(0, MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "n": integer(1, MAX_CHOICES),
    "stop": _stop,
    "stream": boolean,
    "stream_options": object_of({"include_usage": boolean, "continuous_usage_stats": boolean}),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": logit_bias,
    "seed": integer(-INT64, INT64 - 1),
    "user": text(MAX_USER_CHARS),
    "response_format": _RESPONSE_FORMAT,
    # vLLM's sampling extras
    "top_k": integer(-1, MAX_TOKENS),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 10),
    "stop_token_ids": _TOKEN_IDS,
    "include_stop_str_in_output": boolean,
    "ignore_eos": boolean,
    "min_tokens": integer(0, MAX_TOKENS),
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "allowed_token_ids": _TOKEN_IDS,
    "bad_words": list_of(text(MAX_STOP_CHARS), 0, MAX_STOPS),
}

CHAT: Final[Mapping[str, Check]] = {
    **_BOTH,
    "messages": _messages,
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "logprobs": boolean,
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "tools": list_of(_TOOL, 0, MAX_TOOLS),
    "tool_choice": _tool_choice,
    "parallel_tool_calls": boolean,
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high"),
}

COMPLETIONS: Final[Mapping[str, Check]] = {
    **_BOTH,
    "prompt": prompt,
    "logprobs": integer(0, MAX_LOGPROBS),
    "echo": boolean,
    "suffix": text(),
    "add_special_tokens": boolean,
}

DROPPED_FIELDS: Final[Mapping[str, Check]] = {
    "user": text(MAX_USER_CHARS),
    "store": boolean,
    "metadata": free,
    "service_tier": text(64),
    "safety_identifier": text(MAX_USER_CHARS),
    "prompt_cache_key": text(MAX_USER_CHARS),
}
"""OpenAI's labels that do not change an answer: checked, but not passed on."""
