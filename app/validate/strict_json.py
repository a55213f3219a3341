"""Strict JSON parser for untrusted input: UTF-8, bounded size, no duplicate keys, only finite numbers, no ambiguity."""

import json
import math
from typing import Any, Final

from app.domain.errors import Code, Refused

MAX_INT_DIGITS: Final = 18
"""Most digits of an integer: always fits 64 bits; no shape, offset or setting comes near."""

MAX_NUMBER_CHARS: Final = 64
"""Most characters of a fraction: float64 needs 24."""


class _Rule(ValueError):
    """Violation of a rule that this parser adds to JSON."""


def parse(data: bytes, *, max_bytes: int, code: Code, what: str) -> Any:
    """Parse `data`. Raises Refused `code`, its message beginning with `what`, for anything but strict JSON."""
    if len(data) > max_bytes:
        raise Refused(code, f"{what}: {len(data)} bytes, the cap is {max_bytes}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_fraction,
        )
        if b"\\u" in data:
            _refuse_surrogates(value)
    except UnicodeDecodeError as error:
        raise Refused(code, f"{what}: not UTF-8 at byte {error.start}") from error
    except _Rule as error:
        raise Refused(code, f"{what}: {error}") from error
    except ValueError as error:
        raise Refused(code, f"{what}: not JSON: {error}") from error
    except RecursionError as error:
        raise Refused(code, f"{what}: nested too deeply") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Rule(f"key {twice[:80]!r} twice")
    return value


def _constant(text: str) -> Any:
    raise _Rule(f"{text} is no JSON number")


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_INT_DIGITS:
        raise _Rule(f"an integer of more than {MAX_INT_DIGITS} digits")
    if text == "-0":
        raise _Rule("-0 is no integer")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text) if len(text) <= MAX_NUMBER_CHARS else math.inf
    if not math.isfinite(value):
        raise _Rule(f"the number {text[:40]} is out of range")
    return value


def _refuse_surrogates(value: Any) -> None:
    """Refuse lone surrogates: they are not characters and cannot be written, logged or compared safely."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Rule("a lone surrogate") from None
