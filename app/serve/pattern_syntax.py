"""Lexer of regular expressions: groups, alternatives, quantifiers and atoms, in time linear in the pattern."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_COUNTED: Final = re.compile(r"\{(\d{1,9})(?:(,)(\d{1,9})?)?\}")
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*+\]?", re.DOTALL)
_GROUP: Final = re.compile(r"\((?:\?(?:P?<[A-Za-z_]\w{0,63}>|<?[=!]|[a-zA-Z-]*:))?")


class Kind(Enum):
    """Kind of a piece. A closing parenthesis without an opening one is an atom."""

    OPEN = auto()
    CLOSE = auto()
    ALTERNATIVE = auto()
    QUANTIFIER = auto()
    ATOM = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece of a pattern. least, most: repetitions of a quantifier, most None without a bound; 1 of every other piece."""

    kind: Kind
    text: str
    least: int = 1
    most: int | None = 1


def pieces(pattern: str) -> Iterator[Piece]:
    """Yield the pieces of a pattern. Whatever is not a regular expression is read as atoms."""
    at = depth = 0
    while at < len(pattern):
        piece = _piece(pattern, at, depth)
        depth += (piece.kind is Kind.OPEN) - (piece.kind is Kind.CLOSE)
        at += len(piece.text)
        yield piece


def _piece(pattern: str, at: int, depth: int) -> Piece:
    match pattern[at]:
        case "(":
            found = _GROUP.match(pattern, at)
            return Piece(Kind.OPEN, found.group() if found else "(")
        case ")" if depth:
            return Piece(Kind.CLOSE, ")")
        case "|":
            return Piece(Kind.ALTERNATIVE, "|")
        case "*" | "+" | "?" as char:
            return Piece(Kind.QUANTIFIER, char, int(char == "+"), 1 if char == "?" else None)
        case "{" if (found := _COUNTED.match(pattern, at)) is not None:
            low, open_end, high = found.groups()
            return Piece(Kind.QUANTIFIER, found.group(), int(low), int(high or low) if high or not open_end else None)
        case "\\":
            return Piece(Kind.ATOM, pattern[at : at + 2])
        case "[":
            found = _CLASS.match(pattern, at)
            return Piece(Kind.ATOM, found.group() if found else "[")
        case char:
            return Piece(Kind.ATOM, char)
