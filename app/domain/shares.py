"""Shared resources: one table of everything that callers share, and one ledger that limits how much each may hold.

Callers share each resource by a dynamic threshold (Choudhury and Hahne 1998, on shared buffers): the amount one caller
holds may exceed the amount it leaves free by at most one unit. However much a caller requests, some is left for others. If
a resource has few units and several greedy callers, the remainder halves down to nothing: of such a resource one unit is
reserved for each key that holds none.

A resource is added as a `Resource` and its row in `SHARED`, and taken with
`with shares.take(Resource.X, holder, amount):`; tests/attacks/test_shares.py then requires a test that exceeds it.
"""

import ipaddress
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

from app.domain.api_keys import Key, Role
from app.domain.errors import SHARE_TAKEN, TOO_MANY_FOLLOWERS, TOO_MANY_UPLOADS, Code, Refused


class Resource(StrEnum):
    """Name of a shared resource."""

    UPLOADS = "uploads"
    WATCHERS = "watchers"
    BODIES = "bodies"
    REQUESTS = "requests"
    UNREAD = "unread"
    CONNECTIONS = "connections"
    SEQUENCES = "sequences"
    TOKENS = "tokens"
    SCHEMAS = "schemas"


@dataclass(frozen=True, slots=True)
class Row:
    """One shared resource.

    limit: the most that all callers may hold together. unit: name of the counted unit, in the plural.
    code: the refusal. roles: keys with one of these roles hold it, and a single such key may hold all of it, if no other
    callers come; None: every caller holds it, callers without a key by address. kept: one unit is reserved for each of
    these keys that holds none.
    """

    limit: int
    unit: str
    code: Code
    roles: frozenset[Role] | None
    kept: bool = False


SHARED: Final[Mapping[Resource, Row]] = {
    # Default of the setting max_uploads, which replaces this limit.
    Resource.UPLOADS: Row(4, "uploads under way", TOO_MANY_UPLOADS, frozenset({Role.UPLOAD})),
    # Each is an open connection that is mostly idle.
    Resource.WATCHERS: Row(128, "watchers of uploads", TOO_MANY_FOLLOWERS, frozenset({Role.UPLOAD})),
    # 64 of the largest requests; most have a few thousand bytes.
    Resource.BODIES: Row(256 << 20, "bytes of request bodies", SHARE_TAKEN, None),
    # Somewhat below the 1,024 connections to an engine, a few of which the gateway itself needs.
    Resource.REQUESTS: Row(960, "requests to the engine", SHARE_TAKEN, frozenset({Role.CHAT})),
    # Bytes written that the client has not read: 8 of the largest answers, thousands of streams.
    Resource.UNREAD: Row(256 << 20, "bytes of answers that lie unread", SHARE_TAKEN, None),
    # Prompts × n, slots in the engines' batches. The setting max_sequences replaces this limit.
    Resource.SEQUENCES: Row(256, "sequences in the engine", SHARE_TAKEN, frozenset({Role.CHAT}), kept=True),
    # Tokens that those sequences may generate in all: four times the most that one request may ask for.
    Resource.TOKENS: Row(4 << 20, "tokens asked of the engine", SHARE_TAKEN, frozenset({Role.CHAT})),
    # Cost of schemas being compiled (serve/grammar_cost): two of the most costly, or hundreds of common ones.
    Resource.SCHEMAS: Row(200_000, "units of schemas to compile", SHARE_TAKEN, frozenset({Role.CHAT})),
    # By address; half of the open files if the system allows few. A load balancer is one address: it may hold half.
    Resource.CONNECTIONS: Row(8192, "connections", SHARE_TAKEN, None),
}
"""Every resource that callers share."""


class Holding:
    """One caller's share of one resource, held until closed. May be closed more than once."""

    def __init__(self, shares: "Shares", resource: Resource, who: str) -> None:
        self._shares, self._resource, self._holder = shares, resource, who
        self._amount = 0

    def more(self, amount: int = 1) -> None:
        """Hold more of it. Raises Refused with the row's code; the amount held before stays held."""
        self._shares._move(self._resource, self._holder, amount)
        self._amount += amount

    def close(self) -> None:
        """Give all of it back."""
        amount, self._amount = self._amount, 0
        if amount:
            self._shares._move(self._resource, self._holder, -amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Shares:
    """Ledger of every shared resource by holder. Thread-safe; refuses at once, never waits."""

    def __init__(
        self, keys: Iterable[Key] = (), limits: Mapping[Resource, int] | None = None, *, others: bool = False
    ) -> None:
        """keys: all known keys. limits: override the table's. others: callers without one of these keys come as well."""
        self._others = others
        self._limits = {resource: row.limit for resource, row in SHARED.items()} | dict(limits or {})
        self.know(keys)
        self._held: dict[Resource, Counter[str]] = {resource: Counter() for resource in SHARED}
        self._taken = dict.fromkeys(SHARED, 0)
        self._lock = threading.Lock()

    def know(self, keys: Iterable[Key]) -> None:
        """Replace the known keys."""
        roles = {resource: row.roles for resource, row in SHARED.items()}
        known = {(key.holder, key.roles): key for key in keys}.values()
        self._keys = {
            resource: frozenset(key.holder for key in known if wanted is not None and key.may(wanted))
            for resource, wanted in roles.items()
        }
        self._single_key = frozenset(  # a single key may hold all of it
            resource
            for resource, wanted in roles.items()
            if wanted is not None and not self._others and len(self._keys[resource]) < 2
        )

    def limit(self, resource: Resource) -> int:
        """Return the most that all callers may hold together."""
        return self._limits[resource]

    def most(self, resource: Resource) -> int:
        """Return the most that one caller may hold while no other caller holds any."""
        limit = self._limits[resource]
        return limit if resource in self._single_key else (limit + 1) // 2

    def held(self, resource: Resource, who: str) -> int:
        """Return the amount that one caller holds now."""
        return self._held[resource][who]

    def in_use(self, resource: Resource) -> int:
        """Return the amount that all callers together hold now."""
        return self._taken[resource]

    def take(self, resource: Resource, who: str, amount: int = 1) -> Holding:
        """Hold `amount` for the caller `who`: `Key.holder`, or `address_holder`. Raises Refused with the row's code."""
        holding = Holding(self, resource, who)
        holding.more(amount)
        return holding

    def _move(self, resource: Resource, who: str, amount: int) -> None:
        held, limit = self._held[resource], self._limits[resource]
        with self._lock:
            if amount > 0:
                self._check(resource, who, held[who] + amount, limit - self._taken[resource] - amount)
            held[who] += amount
            self._taken[resource] += amount
            if not held[who]:
                del held[who]  # no entry for callers that hold nothing

    def _check(self, resource: Resource, who: str, wanted: int, free: int) -> None:
        """Raise Refused if these amounts are not allowed. wanted, free: amounts after the change."""
        row, limit = SHARED[resource], self._limits[resource]
        if free < 0:
            raise Refused(row.code, f"there is room for {limit} {row.unit}, and too little of it is free")
        if resource not in self._single_key and (
            wanted > free + 1 or (wanted > 1 and free < self._reserved(resource, who))
        ):
            others = "addresses" if row.roles is None else "keys"
            raise Refused(
                row.code, f"{wanted} of {limit} {row.unit} for one caller; what is free is kept for other {others}"
            )

    def _reserved(self, resource: Resource, who: str) -> int:
        """Return the units reserved for other keys, one for each that holds none; at most half of all."""
        if not SHARED[resource].kept:
            return 0
        others = len(self._keys[resource] - {who} - self._held[resource].keys())
        return min(others, self._limits[resource] // 2)


def address_holder(host: str) -> str:
    """Return the holder for callers without a key: their address; for IPv6 its /64 network, which counts as one caller.

    It cannot be a key's name, because it contains a colon.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a test's client
        return f"address:{host}"
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False).network_address
    return f"address:{address}"
