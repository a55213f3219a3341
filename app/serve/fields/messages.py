"""Messages of a conversation in the chat API, built anew in shapes that vLLM's own classes accept.

Answers of the engine come back as history, with everything that clients keep of them; roles are any word, as in vLLM,
because the model's template decides which it knows.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.sampling import MAX_USER_CHARS
from app.serve.fields.tools import chat_tool, function_name, tools_of
from app.serve.fields.validators import Check, boolean, list_of, members, need, object_of, of_type, one_of, text

MAX_MESSAGES: Final = 4096
"""Messages in one conversation."""

MAX_PARTS: Final = 256
"""Text parts of one message."""

MAX_ROLE_CHARS: Final = 64

_CALL = object_of("messages[].tool_calls[].function", {"name": function_name, "arguments": text()}, "name", "arguments")
_TOOL_CALL_MEMBERS = object_of(
    "messages[].tool_calls[]",
    {"id": text(MAX_USER_CHARS), "type": one_of("function"), "function": _CALL},
    "function",
)
_PART: Final = "messages[].content[]"
_TEXT = object_of(_PART, {"type": text(), "text": text()}, "text")

_MEDIA: Final = frozenset(
    {
        *("audio_embeds", "audio_url", "file", "image_embeds", "image_pil", "image_url", "input_audio", "input_image"),
        *("prompt_embeds", "video_embeds", "video_url"),
    }
)
"""Members by which vLLM knows a part as media, whatever its type is: it would fetch their addresses, load their tensors."""


def _text_part(value: Any) -> Any:
    return {**_TEXT(value), "type": "text"}


_PARTS: Final[Mapping[str, Check]] = {
    "text": _text_part,
    "input_text": _text_part,
    "output_text": _text_part,
    "refusal": object_of(_PART, {"type": text(), "refusal": text()}, "refusal"),
    "thinking": object_of(_PART, {"type": text(), "thinking": text(), "closed": boolean}, "thinking"),
    "tool_reference": object_of(_PART, {"type": text(), "name": function_name}, "name"),
}
_WANTED: Final = f"takes only parts of type {', '.join(_PARTS)}: no images, sound, video or files"
_PART_OF_TYPE = of_type(_PARTS, _WANTED)


def _part(value: Any) -> Any:
    if isinstance(value, str):
        return {"type": "text", "text": value}
    need(isinstance(value, dict) and _MEDIA.isdisjoint(value), _WANTED)
    return _PART_OF_TYPE(value)


_PART_LIST = list_of(_part, 0, MAX_PARTS)


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return value
    need(isinstance(value, list), "must be text or a list of parts")
    return _PART_LIST(value)


def _tool_call(value: Any) -> Any:
    """Check a tool call, and add an id and a type if they are missing: vLLM refuses it otherwise."""
    return {"id": "", "type": "function", **_TOOL_CALL_MEMBERS(value)}


_MESSAGE: Final[Mapping[str, Check]] = {
    "role": text(MAX_ROLE_CHARS),
    "content": _content,
    "name": text(MAX_USER_CHARS),
    "tool_calls": tools_of(_tool_call),
    "tool_call_id": text(MAX_USER_CHARS),
    "refusal": text(),
    "reasoning": text(),
    "reasoning_content": text(),
    "tools": tools_of(chat_tool),
    "task": text(MAX_ROLE_CHARS),
}
_ROLE: Final = frozenset({"role"})


def _message(value: Any) -> Any:
    found = members("messages[]", value, _MESSAGE, _ROLE)
    if "reasoning_content" in found:  # the earlier name; vLLM takes it where the present one is missing
        found.setdefault("reasoning", found.pop("reasoning_content"))
    return found


def messages_of(check_message: Check) -> Check:
    """Return a check for a conversation, whose refusals say which message is meant."""

    def check(value: Any) -> Any:
        need(isinstance(value, list) and len(value) > 0, "must be a list of messages")
        found = []
        for index, message in enumerate(value):
            try:
                found.append(check_message(message))
            except ValueError as error:
                raise ValueError(f"message {index}: {error}") from error
        return found

    return check


messages: Final = messages_of(_message)
"""Check of a conversation."""
