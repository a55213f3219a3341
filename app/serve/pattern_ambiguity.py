"""Ambiguous repetitions in regular expressions: groups that hold a repetition and are repeated, as in `(a+)*`.

Such a pattern matches one text in many ways, and the engine follows all of them at each token. It does not if each round
of the group begins or ends with a character that nothing else in it can be, as in `([a-z]+,)*`: then there is one way.
"""

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from app.serve.pattern_syntax import Kind, Piece, pieces

_NOT_LITERAL: Final = frozenset(".^$")


class Ambiguity(IntEnum):
    """Worst repetition in a pattern."""

    NONE = 0
    OPEN = 1
    """Repeated without a bound: the engine follows a few states for each character."""

    COUNTED = 2
    """Repeated a counted number of times: it follows the product of both."""


@dataclass(slots=True)
class _Group:
    """An open group. atoms: text of all atoms in it. parts: number of its own parts.

    first, last: the literal character with which each round begins and ends, None if there is no such character.
    """

    repeats: bool = False
    alternatives: bool = False
    atoms: list[str] = field(default_factory=list)
    parts: int = 0
    first: str | None = None
    last: str | None = None

    def add(self, literal: str | None) -> None:
        """Note a part; literal: the character that it is, if it is one."""
        self.parts += 1
        self.first = literal if self.parts == 1 else self.first
        self.last = literal

    def quantify(self) -> None:
        """Note that the last part has a quantifier: it may be absent, or there several times."""
        self.first = None if self.parts == 1 else self.first
        self.last = None

    @property
    def delimited(self) -> bool:
        """True if each round begins or ends with a character that no other atom in the group can match."""
        marks = [mark for mark in (self.first, self.last) if mark is not None]
        return not self.alternatives and any(sum(_matches(atom, mark) for atom in self.atoms) == 1 for mark in marks)


def ambiguity(pattern: str) -> Ambiguity:
    """Return the worst repetition of a group that holds a repetition."""
    worst, groups = Ambiguity.NONE, [_Group()]
    closed: _Group | None = None  # the group that ended just before
    for piece in pieces(pattern):
        group = groups[-1]
        if piece.kind is Kind.QUANTIFIER:
            group.quantify()
            repetition = _repetition(piece)
            if repetition is not Ambiguity.NONE:
                if closed is not None and closed.repeats and not closed.delimited:
                    worst = max(worst, repetition)
                group.repeats = True
            continue
        closed = None
        if piece.kind is Kind.OPEN:
            groups.append(_Group())
        elif piece.kind is Kind.CLOSE:
            closed = groups.pop()
            groups[-1].atoms += closed.atoms
            groups[-1].repeats |= closed.repeats
            groups[-1].add(None)
        elif piece.kind is Kind.ALTERNATIVE:
            group.alternatives = True
        else:
            group.atoms.append(piece.text)
            group.add(_literal(piece.text))
    return worst


def _repetition(quantifier: Piece) -> Ambiguity:
    """Return how a quantifier repeats the part before it."""
    if quantifier.most is None:
        return Ambiguity.OPEN if quantifier.least < 2 else Ambiguity.COUNTED
    return Ambiguity.COUNTED if quantifier.most > 1 else Ambiguity.NONE


def _literal(atom: str) -> str | None:
    if len(atom) == 1:
        return None if atom in _NOT_LITERAL else atom
    return atom[1] if atom[0] == "\\" and len(atom) == 2 and not atom[1].isalnum() else None


def _matches(atom: str, char: str) -> bool:
    """Return whether an atom may match a character; True if that cannot be told."""
    if len(atom) == 1:
        return atom in (char, ".")
    try:
        return re.fullmatch(atom, char, re.DOTALL) is not None
    except re.error:
        return True
