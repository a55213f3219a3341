"""Roll-out: the division of an adapter's requests among several of its versions, and the move from one to another.

The conversations of an adapter fall into SLOTS slots of equal size, by a hash; each slot belongs to one version. A change
of the weights moves as few slots as possible, so that a conversation that need not move keeps its version.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BAD_WEIGHTS, Refused
from app.domain.names import MAX_NUMBER, VERSION_NUMBER

SLOTS: Final = 100
"""Slots of an adapter: a weight is a whole number of per cent."""

MAX_VERSIONS: Final = 8
"""Most versions of an adapter that its requests go to at one time, a shadow among them: each has metrics of its own."""

_SHADOW: Final = "shadow"
_GUARD: Final = "guard"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Roll-out that an operator asks for.

    weights: version → per cent of the conversations, without versions that get none. shadow: version that gets a copy of
    the requests that others answer. guard: whether it is to be aborted if a version does worse than the stable one.
    """

    weights: Mapping[int, int]
    shadow: int | None = None
    guard: bool = False

    @property
    def versions(self) -> frozenset[int]:
        """Versions that requests go to."""
        return frozenset(self.weights) | (frozenset() if self.shadow is None else {self.shadow})

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "Wanted":
        """Parse an untrusted request's JSON object. Raises Refused BAD_WEIGHTS."""
        weights = {
            _number(name): _weight(name, value) for name, value in fields.items() if name not in (_SHADOW, _GUARD)
        }
        shadow, guard = fields.get(_SHADOW), fields.get(_GUARD, False)
        if shadow is not None and not _is_number(shadow):
            remedy = "Name one version by its number, or leave `shadow` out."
            raise Refused(BAD_WEIGHTS, "`shadow` must be the number of a version", param=_SHADOW, remedy=remedy)
        if not isinstance(guard, bool):
            raise Refused(BAD_WEIGHTS, "`guard` must be true or false", param=_GUARD, remedy="Send true or false.")
        if (total := sum(weights.values())) != SLOTS:
            raise Refused(BAD_WEIGHTS, f"the weights add up to {total}, not to {SLOTS}", param="weights")
        wanted = cls({number: weight for number, weight in sorted(weights.items()) if weight}, shadow, guard)
        if len(wanted.versions) > MAX_VERSIONS:
            message = f"{len(wanted.versions)} versions, the most at one time are {MAX_VERSIONS}"
            raise Refused(BAD_WEIGHTS, message, param="weights", remedy="Name fewer versions, the shadow among them.")
        return wanted


def _number(name: str) -> int:
    """Return the version that a member of the object names, in its one spelling: no two members name the same."""
    if VERSION_NUMBER.fullmatch(name):
        return int(name)
    remedy = "Name versions by their numbers: GET /adapters/{name} lists them."
    raise Refused(BAD_WEIGHTS, f"{name[:40]!r} is not the number of a version", param="weights", remedy=remedy)


def _weight(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SLOTS:
        return value
    message = f"the weight of {name[:40]!r} must be a whole number from 0 to {SLOTS}, in per cent"
    raise Refused(BAD_WEIGHTS, message, param="weights")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_NUMBER


@dataclass(frozen=True, slots=True)
class Rollout:
    """Roll-out in force.

    slots: version of each slot. shadow, guard: see Wanted.
    """

    slots: tuple[int, ...]
    shadow: int | None = None
    guard: bool = False

    @property
    def weights(self) -> Mapping[int, int]:
        """Version → per cent of the conversations, by number."""
        return dict(sorted(Counter(self.slots).items()))

    @property
    def versions(self) -> frozenset[int]:
        """Versions that requests go to."""
        return frozenset(self.slots) | (frozenset() if self.shadow is None else {self.shadow})

    def others(self, stable: int) -> tuple[int, ...]:
        """Return the versions that could be promoted, by number: all but the stable one."""
        return tuple(sorted(self.versions - {stable}))

    def to(self, wanted: Wanted, adapter: str) -> "Rollout":
        """Return this roll-out with other weights; no slot moves that need not.

        The slots that a version gives up, and the order in which others get them, depend on the adapter and its newest
        version: not every roll-out begins with the same users.
        """
        newest = max(wanted.versions)
        surplus = Counter(self.slots)
        surplus.subtract(wanted.weights)
        order = sorted(range(SLOTS), key=lambda slot: _digest(f"{adapter} {newest} {slot}".encode()))
        slots, free = list(self.slots), []
        for slot in order:
            if surplus[slots[slot]] > 0:
                surplus[slots[slot]] -= 1
                free.append(slot)
        short = [number for number in sorted(surplus) for _ in range(-surplus[number])]
        for slot, number in zip(free, short, strict=True):
            slots[slot] = number
        return Rollout(tuple(slots), wanted.shadow, wanted.guard)

    def write(self) -> str:
        """Return it as JSON text."""
        return json.dumps({"slots": self.slots, _SHADOW: self.shadow, _GUARD: self.guard}, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> "Rollout":
        """Reverse `write`."""
        fields = json.loads(text)
        return cls(tuple(fields["slots"]), fields[_SHADOW], fields[_GUARD])


def all_to(version: int) -> Rollout:
    """Return the roll-out in which one version gets every conversation, as before it begins."""
    return Rollout((version,) * SLOTS)


def slot_of(adapter: str, conversation: bytes) -> int:
    """Return the slot of a conversation. adapter: full name; one user is in different slots of different adapters."""
    return int.from_bytes(_digest(adapter.encode() + b"\0" + conversation)) % SLOTS


def stable_version(active: int, weights: Mapping[int, int], *, begun: bool) -> int:
    """Return the version that an abort leaves: the active one if it goes on in a roll-out that has begun, else the one
    with the most weight, of several the active one or the lowest.

    A version uploaded last is active; an operator who gives it a few per cent then wants the other one back.
    """
    if begun and active in weights:
        return active
    most = max(weights.values())
    heaviest = [number for number, weight in sorted(weights.items()) if weight == most]
    return active if active in heaviest else heaviest[0]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
