"""Conversation of a request: the bytes by which all of its requests are known again, so that they go to one version."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.serve import json_body

SESSION_LIMIT: Final = 256
"""Most characters of a session header that are looked at."""

_USER_LABELS: Final = ("user", "safety_identifier")
_SPOKEN: Final = ("messages", "input", "prompt", "tokens")
_BEFORE: Final = ("system", "instructions")


def conversation_of(user: str | None, session: str | None, fields: Mapping[str, Any]) -> bytes:
    """Return the conversation that a request belongs to: its user's, else its session's, else by how it begins.

    user: as `user_of` found it. session: value of the session header. fields: those for the engine. The beginning is
    everything up to the first message of a user, which each request of a conversation repeats. Raises Refused
    INVALID_REQUEST for text that is not Unicode.
    """
    if user:
        return b"user " + user.encode(errors="replace")
    if session:
        return b"session " + session[:SESSION_LIMIT].encode(errors="replace")
    before = {name: fields[name] for name in _BEFORE if name in fields}
    spoken = next((fields[name] for name in _SPOKEN if name in fields), None)
    if isinstance(fields.get("input"), str):  # the Responses API: the next request has it as a message
        spoken = [{"role": "user", "content": spoken}]
    return b"beginning " + json_body.write({**before, "beginning": _beginning(spoken)})


def user_of(labels: Mapping[str, Any]) -> str | None:
    """Return the name of the user that OpenAI's or Anthropic's labels of a request give; None if they give none."""
    metadata = labels.get("metadata")
    named = [labels.get(name) for name in _USER_LABELS]
    named += [metadata.get("user_id")] if isinstance(metadata, Mapping) else []
    return next((name for name in named if isinstance(name, str) and name), None)


def _beginning(spoken: Any) -> Any:
    if not isinstance(spoken, Sequence) or isinstance(spoken, str):
        return spoken
    for place, one in enumerate(spoken):
        if isinstance(one, Mapping) and one.get("role") == "user":
            return [*map(_plainly, spoken[: place + 1])]
    return spoken


def _plainly(message: Any) -> Any:
    """Return role and text of a message that has only text, however its parts are written; any other as it is."""
    if not isinstance(message, Mapping):
        return message
    parts = message.get("content")
    if isinstance(parts, str):
        parts = [{"text": parts}]
    if not isinstance(parts, list) or not all(isinstance(one, Mapping) and "text" in one for one in parts):
        return message
    return {"role": message.get("role"), "text": "".join(str(one["text"]) for one in parts)}
