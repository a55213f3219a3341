"""Fields of /v1/messages requests, Anthropic's, in a table like those of chat.py.

vLLM makes a chat request of them and checks less of it than of one that was sent: a choice among tools that are not there
is therefore refused here (request.py).
"""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.formats import schema
from app.serve.fields.messages import MAX_PARTS, messages_of
from app.serve.fields.sampling import MAX_STOPS, MAX_TOKENS, MAX_USER_CHARS, stop, template_values
from app.serve.fields.tools import MAX_NAME_CHARS, function_name, tools_of
from app.serve.fields.validators import (
    Check,
    boolean,
    dropped,
    integer,
    list_of,
    need,
    number,
    object_of,
    of_type,
    one_of,
    text,
)

MIN_BUDGET: Final = 1024
"""Tokens of reasoning, at least: Anthropic's bound, and vLLM's."""

_LABEL = text(MAX_USER_CHARS)
_NAME = text(MAX_NAME_CHARS)
_KIND: Final[Mapping[str, Check]] = {"type": text()}


def _typed(place: str, kinds: Mapping[str, Mapping[str, Check]], more: str = "") -> Check:
    """Return a check for an object whose members depend on its type."""
    checks = {kind: object_of(place, {**_KIND, **found}) for kind, found in kinds.items()}
    return of_type(checks, f"must be an object whose type is one of {', '.join(kinds)}{more}")


def _content(check_block: Check) -> Check:
    """Return a check for a text, or a list of blocks."""
    blocks = list_of(check_block, 0, MAX_PARTS)

    def check(value: Any) -> Any:
        if isinstance(value, str):
            return value
        need(isinstance(value, list), "must be text or a list of blocks")
        return blocks(value)

    return check


_NO_MEDIA: Final = ": no images and no documents"
_IN_RESULTS: Final[Mapping[str, Mapping[str, Check]]] = {
    "text": {"text": text()},
    "tool_reference": {"tool_name": _NAME, "name": _NAME},
}


def _blocks(place: str) -> Check:
    """Return a check for the content at `place`: a text, or a list of blocks."""
    result = _content(_typed(f"{place}.content[]", _IN_RESULTS, _NO_MEDIA))
    kinds: dict[str, Mapping[str, Check]] = {
        **_IN_RESULTS,
        "thinking": {"thinking": text(), "signature": text()},
        "redacted_thinking": {"data": text()},
        "tool_use": {"id": _LABEL, "name": function_name, "input": schema},
        "tool_result": {"tool_use_id": _LABEL, "content": result, "is_error": boolean},
    }
    return _content(_typed(place, kinds, _NO_MEDIA))


_MESSAGE = object_of(
    "messages[]",
    {"role": one_of("user", "assistant", "system"), "content": _blocks("messages[].content[]")},
    *("role", "content"),
)
_TOOL = object_of(
    "tools[]",
    {
        "type": dropped(one_of("custom")),
        "name": function_name,
        "description": text(),
        "input_schema": schema,
        "strict": boolean,
        "defer_loading": boolean,
    },
    *("name", "input_schema"),
)
_CHOICE: Final[Mapping[str, Check]] = {"disable_parallel_tool_use": boolean}
_EFFORT = one_of("low", "medium", "high", "xhigh", "max")
_FORMAT = object_of("output_config.format", {"type": one_of("json_schema"), "schema": schema})
_DISPLAY: Final[Mapping[str, Check]] = {"display": one_of("summarized", "omitted", "updates")}


def _stop_sequences(value: Any) -> Any:
    need(isinstance(value, list), f"must be a list of at most {MAX_STOPS} strings")
    return stop(value)


MESSAGES: Final[Mapping[str, Check]] = {
    "model": lambda value: value,  # checked by RoutingTable.resolve
    "messages": messages_of(_MESSAGE),
    "max_tokens": integer(1, MAX_TOKENS),
    "system": _blocks("system[]"),
    "stop_sequences": _stop_sequences,
    "stream": boolean,
    "temperature": number(0, 2),
    "top_k": integer(-1, MAX_TOKENS),
    "top_p": number(0, 1),
    "tools": tools_of(_TOOL),
    "tool_choice": _typed(
        "tool_choice", {"auto": _CHOICE, "any": _CHOICE, "none": _CHOICE, "tool": {**_CHOICE, "name": function_name}}
    ),
    "thinking": _typed(
        "thinking",
        {
            "enabled": {"budget_tokens": integer(MIN_BUDGET, MAX_TOKENS), **_DISPLAY},
            "disabled": {},
            "adaptive": _DISPLAY,
        },
    ),
    "output_config": object_of("output_config", {"effort": _EFFORT, "format": _FORMAT}),
    "chat_template_kwargs": template_values,
}

_NOT_COUNTED: Final = frozenset({"max_tokens", "stop_sequences", "stream", "temperature", "top_k", "top_p"})
"""Fields that say nothing of the prompt."""

COUNT_TOKENS: Final[Mapping[str, Check]] = {name: check for name, check in MESSAGES.items() if name not in _NOT_COUNTED}
"""Fields of /v1/messages/count_tokens."""
