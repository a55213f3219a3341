"""Fields of chat and completion requests: one table for each, field → check of its value and size.

The fields are OpenAI's and vLLM's. Any other field is left out and named to the caller, except for those that would
endanger others (refused.py), because vLLM reads some seventy, among them templates, paths and cache keys (hostile.md P05).
The checked values are built anew for the engine, in shapes that vLLM's own classes accept: for each item they do not
accept, they write up to 100 KB of error messages.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.formats import response_format
from app.serve.fields.messages import messages
from app.serve.fields.sampling import (
    EFFORTS,
    MAX_ID,
    MAX_LOGPROBS,
    MAX_TOKENS,
    MAX_USER_CHARS,
    MORE_SAMPLING,
    SAMPLING,
    template_values,
)
from app.serve.fields.tools import chat_choice, chat_tool, tools_of
from app.serve.fields.validators import Check, boolean, free, integer, limit, list_of, need, text
from app.serve.json_body import MAX_VALUES

MAX_PROMPTS: Final = 64
"""Prompts in one completion request."""

MAX_SEQUENCES: Final = 64
"""Prompts × n of one request: each is a place in the engine's batch."""

MAX_ALL_TOKENS: Final = 1 << 20
"""Prompts × n × requested tokens, of one request."""

MAX_BEAMS: Final = 8
"""Beams (`n`) of a beam search: the engine sends itself a request for each of them at each token."""

MAX_BEAM_TOKENS: Final = 1024
"""Tokens of a beam search, which never ends before them; it copies what it has of each beam at each token."""

MAX_DOCUMENTS: Final = 64
MAX_DOCUMENT_MEMBERS: Final = 16
MAX_DOCUMENT_KEY_CHARS: Final = 64
"""Documents of one request, members of each, and characters of a member's name."""


def prompt(value: Any) -> Any:
    """Check a prompt: a string, token ids, or a list of either."""
    if isinstance(value, str):
        need(value != "", "must not be empty")
        return value
    need(isinstance(value, list) and len(value) > 0, "must be a string, token ids, or a list of those")
    if isinstance(value[0], int | float):
        return _token_ids(value)
    return list_of(_token_ids if isinstance(value[0], list) else text(), 1, MAX_PROMPTS)(value)


_token_ids = list_of(integer(0, MAX_ID), 1, MAX_VALUES)


def _document(value: Any) -> Any:
    wanted = f"must hold objects of at most {MAX_DOCUMENT_MEMBERS} texts"
    need(isinstance(value, dict) and len(value) <= MAX_DOCUMENT_MEMBERS, wanted)
    for key, item in value.items():
        need(len(key) <= MAX_DOCUMENT_KEY_CHARS and isinstance(item, str), wanted)
    return value


_BOTH: Final[Mapping[str, Check]] = {
    **SAMPLING,
    **MORE_SAMPLING,
    "response_format": response_format,
    "add_special_tokens": boolean,
    "echo": boolean,
}

CHAT: Final[Mapping[str, Check]] = {
    **_BOTH,
    "messages": messages,
    "max_completion_tokens": limit(1, MAX_TOKENS),
    "logprobs": boolean,
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "tools": tools_of(chat_tool),
    "tool_choice": chat_choice,
    "parallel_tool_calls": boolean,
    "reasoning_effort": EFFORTS,
    "include_reasoning": boolean,
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "chat_template_kwargs": template_values,
    "documents": list_of(_document, 0, MAX_DOCUMENTS),
    "return_prompt_text": boolean,
}

COMPLETIONS: Final[Mapping[str, Check]] = {
    **_BOTH,
    "prompt": prompt,
    "logprobs": integer(0, MAX_LOGPROBS),
    "suffix": text(),
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
