"""Fields of /v1/responses and /v1/embeddings requests, in tables like those of chat.py.

The gateway stores no responses: vLLM's own store does not separate tenants, so a guessed id would reveal another
tenant's conversation. The engine therefore always gets `store` as false, although its default is true, and a reference
to a stored response is refused.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.chat import prompt
from app.serve.fields.formats import schema
from app.serve.fields.ignored import ignore
from app.serve.fields.input_items import KEPT_NOTHING, input_items
from app.serve.fields.sampling import EFFORTS, MAX_LOGPROBS, MAX_TOKENS, SAMPLING, template_values
from app.serve.fields.tools import function_name, response_choice, response_tool, tools_of
from app.serve.fields.validators import DROPPED, Check, boolean, integer, limit, list_of, need, object_of, one_of, text

MAX_DIMENSIONS: Final = 1 << 16
"""Numbers in one embedding."""

MAX_TOOL_CALLS: Final = 1 << 10
"""Tool calls that one answer may be limited to."""

MAX_INCLUDED: Final = 16
"""Entries of `include`; OpenAI has eight kinds."""

MAX_INCLUDED_CHARS: Final = 64

LOGPROBS: Final = "message.output_text.logprobs"
"""The entry of `include` that changes vLLM's answer; others would name what its tools and its store have."""


def _nothing_stored(value: Any) -> Any:
    need(value is False, KEPT_NOTHING)
    return value


def _no_template(_: Any) -> Any:
    raise ValueError("stored prompts are not offered: send their text as `instructions` and `input`")


_INCLUDED = list_of(text(MAX_INCLUDED_CHARS), 0, MAX_INCLUDED)


def _include(value: Any) -> Any:
    asked = _INCLUDED(value)
    for other in asked:
        if other != LOGPROBS:
            ignore("include[]", other)
    return [LOGPROBS] if LOGPROBS in asked else DROPPED


_FORMAT = object_of(
    "text.format",
    {
        "type": one_of("text", "json_object", "json_schema"),
        "name": function_name,
        "description": text(),
        "schema": schema,
        "strict": boolean,
    },
    "type",
)
_SUMMARIES = one_of("auto", "concise", "detailed")

RESPONSES: Final[Mapping[str, Check]] = {
    **SAMPLING,
    "input": input_items,
    "instructions": text(),
    "max_output_tokens": limit(1, MAX_TOKENS),
    "max_tool_calls": integer(0, MAX_TOOL_CALLS),
    "tools": tools_of(response_tool),
    "tool_choice": response_choice,
    "parallel_tool_calls": boolean,
    "text": object_of("text", {"format": _FORMAT, "verbosity": one_of("low", "medium", "high")}),
    "reasoning": object_of("reasoning", {"effort": EFFORTS, "summary": _SUMMARIES, "generate_summary": _SUMMARIES}),
    "include_reasoning": boolean,
    "include": _include,
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "truncation": one_of("auto", "disabled"),
    "chat_template_kwargs": template_values,
    "enable_response_messages": boolean,
    "prompt": _no_template,
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
    "truncate_prompt_tokens": integer(-1, MAX_TOKENS),
    "truncation_side": one_of("left", "right"),
    "add_special_tokens": boolean,
    "use_activation": boolean,
}
