"""The body of one inference request: strictly parsed, every field on the table, written anew for the engine.

The engine never sees a byte a stranger sent: not an unknown field, not a duplicate key, not a number JSON does not have.
"""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

from app.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, Refused
from app.serve.checks import Check
from app.serve.fields import CHAT, COMPLETIONS, MAX_MESSAGES, UNHEARD
from app.serve.more_fields import EMBEDDINGS, RESPONSES

Kind = Literal["chat", "completions", "responses", "embeddings"]

MAX_BODY_BYTES: Final = 4 << 20
"""Bytes of a request: about a million tokens of text."""

COLLECTED_BYTES: Final = 64 << 10
"""Bytes of a body that is decoded without further ado."""

_TABLES: Final[Mapping[Kind, Mapping[str, Check]]] = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "embeddings": EMBEDDINGS,
}
_REQUIRED: Final[Mapping[Kind, str]] = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "embeddings": "input",
}
_WITH_COUNTS: Final[frozenset[Kind]] = frozenset({"chat", "completions"})
"""Where a stream says token counts only when asked; in the other it always does."""


@dataclass(frozen=True, slots=True)
class Inference:
    """One request, checked. model: as sent, not resolved yet. fields: what goes on to the engine, without `model`."""

    kind: Kind
    model: object
    fields: Mapping[str, Any]

    @property
    def stream(self) -> bool:
        """Whether the answer is wanted token by token."""
        return self.fields.get("stream") is True

    @property
    def usage_wanted(self) -> bool:
        """Whether the caller asked for token counts at the end of a stream."""
        return bool((self.fields.get("stream_options") or {}).get("include_usage"))

    def encode(self, engine_name: str) -> bytes:
        """The body for the engine, which is always asked for token counts: we count them, whether or not the caller does.

        It is asked for them once, at the end; vLLM then says its `system_fingerprint` there, and not with the last token.
        Raises Refused INVALID_REQUEST for text that is not Unicode.
        """
        fields = self.fields
        if self.kind == "responses":
            fields = {**fields, "store": False}  # its default is true
        if self.stream and self.kind in _WITH_COUNTS and not self.usage_wanted:
            asked = {**(fields.get("stream_options") or {}), "include_usage": True}
            asked.pop("continuous_usage_stats", None)  # without include_usage, vLLM does not do it
            fields = {**fields, "stream_options": asked}
        try:
            return _ENCODE({"model": engine_name, **fields}).encode()
        except (ValueError, RecursionError) as error:  # lone surrogates; numbers beyond a float
            raise Refused(INVALID_REQUEST, "the body holds text or numbers that JSON cannot carry") from error


def parse(kind: Kind, raw: bytes) -> Inference:
    """Read a stranger's body. Raises Refused INVALID_REQUEST or REQUEST_TOO_LARGE, naming the field."""
    body = _read(raw)
    table = _TABLES[kind]
    fields = {}
    for name, value in body.items():
        check = table.get(name) or UNHEARD.get(name)
        if check is None:
            raise Refused(INVALID_REQUEST, f"unknown field {name[:64]!r}", param=name[:64])
        if value is None:  # says nothing, and vLLM minds it in some fields
            continue
        if name == "messages" and isinstance(value, list) and len(value) > MAX_MESSAGES:
            raise Refused(REQUEST_TOO_LARGE, f"{len(value)} messages, the cap is {MAX_MESSAGES}", param=name)
        try:
            check(value)
        except ValueError as error:
            raise Refused(INVALID_REQUEST, f"{name}: {error}", param=name) from error
        if name not in UNHEARD:
            fields[name] = value
    model = fields.pop("model", None)
    _complete(kind, fields)
    return Inference(kind, model, fields)


def _complete(kind: Kind, fields: Mapping[str, Any]) -> None:
    """What cannot be seen field by field."""
    required = _REQUIRED[kind]
    if required not in fields:
        raise Refused(INVALID_REQUEST, f"{required} is missing", param=required)
    if "stream_options" in fields and not fields.get("stream"):
        raise Refused(INVALID_REQUEST, "stream_options needs stream: true", param="stream_options")
    if kind == "chat" and fields.get("top_logprobs") and not fields.get("logprobs"):
        raise Refused(INVALID_REQUEST, "top_logprobs needs logprobs: true", param="top_logprobs")


def _read(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_BODY_BYTES:
        raise Refused(REQUEST_TOO_LARGE, f"the body has {len(raw)} bytes, the cap is {MAX_BODY_BYTES}")
    try:
        with _no_collection(len(raw)):
            body = _DECODE(raw.decode())
    except RecursionError as error:
        raise Refused(INVALID_REQUEST, "the body is nested too deeply") from error
    except ValueError as error:  # not UTF-8, not JSON, a duplicate key, NaN, an integer of thousands of digits
        raise Refused(INVALID_REQUEST, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(INVALID_REQUEST, "the body must be a JSON object")
    return body


@contextmanager
def _no_collection(size: int) -> Iterator[None]:
    """Keep the cyclic collector out of the decoding of a large body: a million lists in it made it run for seconds."""
    off = size > COLLECTED_BYTES and gc.isenabled()
    if off:
        gc.disable()
    try:
        yield
    finally:
        if off:
            gc.enable()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None, which is false
        raise ValueError(f"key {twice[:64]!r} stands there twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_DECODE = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False).encode
