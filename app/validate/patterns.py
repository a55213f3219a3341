"""PEFT's rank_pattern and alpha_pattern: the first key that matches a module counts; no key is evaluated as an expression.

PEFT (`get_pattern_key`) and vLLM (`PEFTHelper._match_pattern`) try the keys in the file's order and search each as
`(.*\\.)?(key)$`. A key of plain characters therefore means a module's full name or the end of one, from a dot on; an
unescaped dot stands for any character, as there. `.*\\.name`, as PEFT writes it for a mixture's experts, means the end from
a dot on. Any other key is an expression: it may match or not, and only what both cases have in common is relied on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

MAX_EXPRESSIONS: Final = 64
"""Most keys of one pattern that are expressions. People write a few; the cases to compare grow with the square."""

_PLAIN = re.compile(r"(?P<below>\.\*\\\.)?(?P<text>(?:[A-Za-z0-9_.\-]|\\\.)+)\$?")
_ANY = "?"
"""Placeholder for a key's unescaped dot; no plain key contains it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a pattern. text: characters to compare, None for an expression. below: a dot must come before them."""

    written: str
    text: str | None
    below: bool = False

    @classmethod
    def of(cls, written: str) -> "Key":
        """Read a key."""
        found = _PLAIN.fullmatch(written)
        if found is None:
            return cls(written, None)
        text = "\\.".join(part.replace(".", _ANY) for part in found["text"].split("\\.")).replace("\\.", ".")
        return cls(written, text, found["below"] is not None)

    def matches(self, module: str) -> bool | None:
        """Return whether PEFT would apply this key to a module; None if only evaluating the expression would tell."""
        if self.text is None:
            return None
        before = len(module) - len(self.text)
        if before < 0 or (before == 0 and self.below) or (before > 0 and module[before - 1] != "."):
            return False
        return all(ours in (_ANY, theirs) for ours, theirs in zip(self.text, module[before:], strict=True))


@dataclass(frozen=True, slots=True)
class Reading:
    """One possible value for a module. key: the key it comes from, None for the field that counts without any."""

    key: Key | None
    value: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern: its keys in the file's order, each with the value for the modules it matches."""

    items: tuple[tuple[Key, float], ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, float]) -> "Pattern":
        """Read the keys of a pattern."""
        return cls(tuple((Key.of(written), value) for written, value in fields.items()))

    @property
    def expressions(self) -> int:
        """Number of keys that are expressions."""
        return sum(key.text is None for key, _ in self.items)

    def readings(self, module: str, otherwise: float, assumed: Mapping[str, bool]) -> Iterator[Reading]:
        """Yield every value that a module may have. assumed: by expression, whether it is taken to match; others may."""
        for key, value in self.items:
            matches = key.matches(module)
            if matches is None:
                matches = assumed.get(key.written)
            if matches is not False:
                yield Reading(key, value)
            if matches:
                return
        yield Reading(None, otherwise)


def alphas(
    module: str, rank: float, ranks: tuple[Pattern, float], patterns: tuple[Pattern, float]
) -> tuple[Reading, ...]:
    """Return the readings of a module's alpha that its rank leaves possible, one for each different value.

    ranks, patterns: rank_pattern with r, alpha_pattern with lora_alpha. The same expression in both matches in both or in
    neither, so a module's rank, which its tensors show, often tells which alpha is meant.
    """
    found: dict[float, Reading] = {}
    assumed: dict[str, bool] = {}
    pattern, otherwise = patterns
    for reading in pattern.readings(module, otherwise, {}):
        expression = reading.key is not None and reading.key.text is None
        here = {**assumed, reading.key.written: True} if expression and reading.key else assumed
        if any(one.value == rank for one in ranks[0].readings(module, ranks[1], here)):
            found.setdefault(reading.value, reading)
        if expression and reading.key:
            assumed[reading.key.written] = False
    return tuple(found.values())
