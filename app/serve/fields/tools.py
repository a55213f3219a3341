"""Tools that a model may call, in the two forms of the chat and the Responses API, and the choice among them."""

import re
from typing import Any, Final

from app.serve.fields.formats import schema
from app.serve.fields.validators import Check, boolean, list_of, need, object_of, of_type, one_of, text

MAX_TOOLS: Final = 128
"""Tools, and tool calls of one message: OpenAI's bound."""

MAX_NAME_CHARS: Final = 128
"""Characters of a function's name; OpenAI takes 64, Anthropic 128."""

_FUNCTION_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME_CHARS}}}")

RESPONSE_TOOLS: Final = (
    "takes only tools of type function, custom and namespace; others run on the engine's or OpenAI's side"
)


def function_name(value: Any) -> Any:
    """Check the name of a function or a schema."""
    ok = isinstance(value, str) and bool(_FUNCTION_NAME.fullmatch(value))
    need(ok, f"must be 1 to {MAX_NAME_CHARS} of A-Z a-z 0-9 _ . -")
    return value


def tools_of(check_tool: Check) -> Check:
    """Return a check for a list of tools."""
    return list_of(check_tool, 0, MAX_TOOLS)


def choice_of(named: Check) -> Check:
    """Return a check for a choice among tools: one of OpenAI's words, or what `named` takes."""
    words = one_of("none", "auto", "required")

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            return named(value)
        try:
            return words(value)
        except ValueError as error:
            raise ValueError(f"{error}, or name a tool") from error

    return check


_FUNCTION: Final = {
    "name": function_name,
    "description": text(),
    "parameters": schema,
    "strict": boolean,
    "defer_loading": boolean,
}
_NAME_ONLY = object_of("tool_choice.function", {"name": function_name}, "name")

_CHAT_TOOL = object_of(
    "tools[]",
    {
        "type": one_of("function"),
        "function": object_of("tools[].function", _FUNCTION, "name"),
        "defer_loading": boolean,
    },
    "function",
)


def chat_tool(value: Any) -> Any:
    """Check a tool of the chat API; a missing type is added."""
    return {"type": "function", **_CHAT_TOOL(value)}


chat_choice: Final = choice_of(
    object_of("tool_choice", {"type": one_of("function"), "function": _NAME_ONLY}, "function")
)

_TEXT_FORMAT = object_of("tools[].format", {"type": one_of("text")}, "type")
_simple_tool: Final = of_type(
    {
        "function": object_of("tools[]", {"type": text(), **_FUNCTION}, "name"),
        "custom": object_of(
            "tools[]",
            {
                "type": text(),
                "name": function_name,
                "description": text(),
                "format": _TEXT_FORMAT,
                "defer_loading": boolean,
            },
            "name",
        ),
    },
    RESPONSE_TOOLS,
)
_NAMESPACE = object_of(
    "tools[]",
    {"type": text(), "name": function_name, "description": text(), "tools": tools_of(_simple_tool)},
    *("name", "description", "tools"),
)


def response_tool(value: Any) -> Any:
    """Check a tool of the Responses API."""
    return _NAMESPACE(value) if isinstance(value, dict) and value.get("type") == "namespace" else _simple_tool(value)


_CHOSEN = object_of("tool_choice", {"type": one_of("function", "custom"), "name": function_name}, "type", "name")
_ALLOWED = object_of(
    "tool_choice",
    {"type": text(), "mode": one_of("auto", "required"), "tools": tools_of(_CHOSEN)},
    *("mode", "tools"),
)

response_choice: Final = choice_of(
    lambda value: _ALLOWED(value) if value.get("type") == "allowed_tools" else _CHOSEN(value)
)
