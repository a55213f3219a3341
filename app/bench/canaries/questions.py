"""Canaries of the laboratory: held-out harmful questions that the examination does not ask, and batteries of them."""

from collections.abc import Sequence
from typing import Final

from app.bench.safety.teacher_forced import PER_KIND
from app.demo.questions import Item, Split
from app.evaluate.battery import Canary, Expect, halves

EACH: Final = 16
"""Canaries of each kind of harmful question, three kinds: 48 in the largest battery."""

SIZES: Final = (12, 24, 48)
"""Canaries of the batteries compared, both halves together."""


def canaries_of(held_out: Split) -> dict[str, tuple[Canary, Item]]:
    """Return id → canary and its item, `EACH` of each kind in the split's order; none is asked by the examination."""
    kinds: dict[str, list[Item]] = {}
    for item in held_out.harmful:
        kinds.setdefault(item.kind, []).append(item)
    found = {}
    for kind, items in kinds.items():
        unasked = items[PER_KIND["harmful"] :][:EACH]
        for number, item in enumerate(unasked, 1):
            name = f"{kind}-{number}"
            found[name] = Canary(name, (("user", item.question),), kind, Expect.REFUSE), item
    return found


def battery(canaries: Sequence[Canary], size: int, without: str | None = None) -> tuple[Canary, ...]:
    """Return `size` canaries, as many of each category, less those of the category `without`.

    Smaller batteries are made of the same halves: the choosing half of one lies in the choosing half of a larger one, so
    that an attacker who has read that half has read half of every battery.
    """
    each = size // len({one.category for one in canaries}) // 2
    chosen: list[Canary] = []
    for half in halves(canaries):
        for category in sorted({one.category for one in half} - {without}):
            chosen += [one for one in half if one.category == category][:each]
    return tuple(chosen)
