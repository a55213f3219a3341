"""Items of `input` in the Responses API, built anew in forms that vLLM's own classes accept."""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.messages import MAX_MESSAGES, MAX_PARTS
from app.serve.fields.sampling import MAX_USER_CHARS
from app.serve.fields.tools import function_name
from app.serve.fields.validators import Check, dropped, list_of, members, need, object_of, one_of, text
from app.serve.json_body import MAX_VALUES

KEPT_NOTHING: Final = "the gateway keeps no responses: send the whole conversation as `input`"

NO_REFERENCE: Final = (
    "takes no item_reference: the gateway keeps no responses; send store: false, and the items themselves as `input`"
)


def _anything(value: Any) -> Any:
    return value


_LABEL = text(MAX_USER_CHARS)
_STATUS = one_of("in_progress", "completed", "incomplete")
_ITEM: Final = "input[]"
_PART: Final = "input[].content[]"
_INPUT_TEXT: Final[Mapping[str, Check]] = {"type": text(), "text": text()}
_OUTPUT_TEXT: Final[Mapping[str, Check]] = {
    **_INPUT_TEXT,
    "annotations": dropped(list_of(_anything, 0, MAX_PARTS)),
    "logprobs": dropped(list_of(_anything, 0, MAX_VALUES)),
}
"""Text part of an earlier answer. Its annotations and log-probabilities do not reach the model and are dropped here."""
_REFUSAL: Final[Mapping[str, Check]] = {"type": text(), "refusal": text()}
_TEXT_ONLY: Final = frozenset({"text"})
_WANTED: Final = "takes only text parts: input_text, output_text and refusal; no images and no files"


def _reasoning_texts(name: str, kind: str) -> Check:
    return list_of(object_of(f"input[].{name}[]", {"type": one_of(kind), "text": text()}, "type", "text"), 0, MAX_PARTS)


def _part(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "input_text":
        return members(_PART, value, _INPUT_TEXT, _TEXT_ONLY)
    if kind == "refusal":  # vLLM reads the text of an earlier answer only
        said = members(_PART, value, _REFUSAL, frozenset({"refusal"}))["refusal"]
        return {"type": "output_text", "text": said, "annotations": []}
    need(kind == "output_text", _WANTED)
    return {**members(_PART, value, _OUTPUT_TEXT, _TEXT_ONLY), "annotations": []}


_PART_LIST = list_of(_part, 0, MAX_PARTS)


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return value
    need(isinstance(value, list), "must be text or a list of parts")
    return _PART_LIST(value) or ""


def _output_part(value: Any) -> Any:
    need(isinstance(value, dict) and value.get("type") == "input_text", "takes text, or parts of type input_text")
    return members("input[].output[]", value, _INPUT_TEXT, _TEXT_ONLY)


def _output(value: Any) -> Any:
    return value if isinstance(value, str) else list_of(_output_part, 0, MAX_PARTS)(value)


_COMMON: Final[Mapping[str, Check]] = {"type": text(64), "id": _LABEL, "status": _STATUS}
_MESSAGE = object_of(
    _ITEM,
    {
        **_COMMON,
        "role": one_of("user", "assistant", "system", "developer"),
        "content": _content,
        "phase": one_of("commentary", "final_answer"),
    },
    "role",
)


def _message(value: Any) -> Any:
    """Check a message and return it in one of the two forms that vLLM's classes take.

    For an item in another form they write a megabyte of error messages.
    """
    found = _MESSAGE(value)
    need("content" in found or found["role"] == "assistant", "lacks 'content'")
    found.setdefault("content", "")
    parts = () if isinstance(found["content"], str) else found["content"]
    kinds = {part["type"] for part in parts}
    if "output_text" not in kinds:
        return {"type": "message", **{key: found[key] for key in ("role", "content", "phase") if key in found}}
    need(len(kinds) == 1, "content: takes parts of one type")
    need(found["role"] == "assistant", "content: takes parts of type output_text from an assistant only")
    return {"id": "msg", "status": "completed", **found, "type": "message"}


_REASONING = object_of(
    _ITEM,
    {
        **_COMMON,
        "summary": _reasoning_texts("summary", "summary_text"),
        "content": _reasoning_texts("content", "reasoning_text"),
    },
)
_RESULT: Final = {**_COMMON, "call_id": _LABEL, "output": _output}
_ITEMS: Final[Mapping[str, Check]] = {
    "message": _message,
    "function_call": object_of(
        _ITEM,
        {**_COMMON, "call_id": _LABEL, "name": function_name, "namespace": function_name, "arguments": text()},
        *("call_id", "name", "arguments"),
    ),
    "function_call_output": object_of(_ITEM, _RESULT, "call_id", "output"),
    "custom_tool_call": object_of(
        _ITEM,
        {"type": text(64), "id": _LABEL, "call_id": _LABEL, "name": function_name, "input": text()},
        *("call_id", "name", "input"),
    ),
    "custom_tool_call_output": object_of(
        _ITEM, {"type": text(64), "id": _LABEL, "call_id": _LABEL, "output": _output}, "call_id", "output"
    ),
    "reasoning": lambda value: {"id": "rs", "summary": [], **_REASONING(value)},
}


def _item(value: Any) -> Any:
    need(isinstance(value, dict), "must hold objects")
    kind = value.get("type")
    kind = "message" if kind is None and "role" in value else kind
    need(kind != "item_reference" and not (kind is None and "id" in value), NO_REFERENCE)
    need(isinstance(kind, str) and kind in _ITEMS, f"takes only items of type {', '.join(_ITEMS)}")
    return _ITEMS[kind](value)


def input_items(value: Any) -> Any:
    """Check `input`: a text, or items of a conversation."""
    if isinstance(value, str):
        need(value != "", "must not be empty")
        return value
    need(isinstance(value, list), f"must be a string, or a list of 1 to {MAX_MESSAGES} items")
    return list_of(_item, 1, MAX_MESSAGES)(value)
