"""Bounded JSON for inference bodies: counted before it is decoded, decoded strictly, encoded in pieces.

Python's JSON decoder and encoder hold the interpreter lock during one call, in whatever thread it runs, so a call must
not be long: the decoder returns to Python code for each object and fraction, the encoder gets a piece at a time.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, Refused

MAX_BODY_BYTES: Final = 4 << 20
"""Bytes of a request body: about a million tokens of text."""

MAX_VALUES: Final = 1 << 17
"""JSON values in a request, without members' names: a prompt of as many token ids as common models have context.

Each costs some hundred bytes here, and in the engine up to a few thousand (a text part of a Responses item)."""

MAX_CONVERSATION_VALUES: Final = 1 << 15
"""JSON values in a conversation: 4,096 messages of one part each. vLLM validates each of them on the event loop on which
everybody's tokens pass."""

SMALL_BYTES: Final = 64 << 10
SMALL_VALUES: Final = 2048
"""Bytes and values of a body that may be decoded on the event loop: a few milliseconds of work at most."""

_SLICE: Final = 1 << 18
"""Bytes counted in one step."""

_FEW: Final = 1
"""Objects of a list that are encoded in one call; each may hold a schema of ten thousand fractions."""

_MANY: Final = 1 << 13
"""Numbers or strings of a list that are encoded in one call."""

_STARTS: Final = b",[{"
"""Bytes that each precede a value; one more value is the body itself."""


def is_small(raw: bytes) -> bool:
    """Return whether `raw` is small enough to be decoded on the event loop. Separators in strings count too."""
    return len(raw) <= SMALL_BYTES and _separators(raw) < SMALL_VALUES


def values_in(raw: bytes, most: int) -> int:
    """Return the number of JSON values in `raw` if it is JSON, else some number; an empty list or object counts twice.

    Separators in strings count too as long as the number is at most `most` with them. Counting stops, with more than
    `most`, as soon as there are so many.
    """
    if (with_texts := 1 + _separators(raw)) <= most:
        return with_texts
    count, inside, rest = 1, False, b""
    for start in range(0, len(raw), _SLICE):
        part = rest + raw[start : start + _SLICE]
        odd = (len(part) - len(part.rstrip(b"\\"))) % 2  # a backslash at the end escapes the next byte
        part, rest = part[: len(part) - odd], part[len(part) - odd :]
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        count += _separators(b"".join(pieces[inside::2]))
        inside ^= len(pieces) % 2 == 0
        if count > most:
            break
    return count


def read(raw: bytes, cap: int = MAX_BODY_BYTES, most: int = MAX_VALUES) -> dict[str, Any]:
    """Decode `raw`, of at most `cap` bytes and `most` values, to a JSON object.

    Raises Refused INVALID_REQUEST or REQUEST_TOO_LARGE.
    """
    if len(raw) > cap:
        raise Refused(REQUEST_TOO_LARGE, f"the body has {len(raw)} bytes, the cap is {cap}")
    whole = raw.strip(b" \t\r\n")
    if not (whole.startswith(b"{") and whole.endswith(b"}")):
        raise Refused(INVALID_REQUEST, "the body must be a JSON object")
    if values_in(whole, most) > most:
        raise Refused(REQUEST_TOO_LARGE, f"the body has over {most} JSON values, the cap; send texts, in fewer parts")
    try:
        body = _DECODE(whole.decode())
    except RecursionError as error:
        raise Refused(INVALID_REQUEST, "the body is nested too deeply") from error
    except ValueError as error:  # not UTF-8, not JSON, a duplicate key, NaN, an integer of thousands of digits
        raise Refused(INVALID_REQUEST, f"the body is not valid JSON: {error}") from error
    assert isinstance(body, dict)  # it begins with a brace
    return body


def write(fields: Mapping[str, Any]) -> bytes:
    """Encode `fields` as one JSON object. Raises Refused INVALID_REQUEST for values that JSON cannot carry."""
    try:
        members = [f"{_ENCODE(name)}:{_encoded(value)}" for name, value in fields.items()]
        return f"{{{','.join(members)}}}".encode()
    except (ValueError, RecursionError) as error:  # lone surrogates; numbers beyond a float
        raise Refused(INVALID_REQUEST, "the body holds text or numbers that JSON cannot carry") from error


def _encoded(value: Any) -> str:
    if not isinstance(value, list) or len(value) <= _FEW:
        return _ENCODE(value)
    step = _FEW if isinstance(value[0], dict | list) else _MANY
    pieces = (_ENCODE(value[start : start + step])[1:-1] for start in range(0, len(value), step))
    return f"[{','.join(pieces)}]"


def _separators(raw: bytes) -> int:
    return len(raw) - len(raw.translate(None, _STARTS))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None, which is false
        raise ValueError(f"key {twice[:64]!r} stands there twice")
    return found


def _fraction(digits: str) -> float:
    return float(digits)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_DECODE = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_fraction, parse_constant=_no_constant).decode
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False).encode
