"""Shared resources: one table of all that callers hold in common, and one place that says how much of it each may hold.

Callers share each resource by a dynamic threshold (Choudhury and Hahne 1998, of shared buffers): what one holds must never
be more than what it leaves free, but for one unit. However much a caller asks for, others find some. Where few units meet
several greedy callers, what is left halves to nothing: of such a resource one unit is kept for each key that holds none.

A resource is added as a `Resource` and its row in `SHARED`, and taken with
`with shares.take(Resource.X, holder, amount):`; tests/attacks/test_shares.py then asks for a way to exceed it over HTTP.
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

    limit: the most of it that all callers may hold together. unit: what is counted, in the plural.
    code: the refusal. roles: keys with one of these hold it, and where there is one such key it may hold all; None: anyone
    holds it, without a key by address. kept: whether one unit is left for each of these keys that holds none.
    """

    limit: int
    unit: str
    code: Code
    roles: frozenset[Role] | None
    kept: bool = False


SHARED: Final[Mapping[Resource, Row]] = {
    # The setting max_uploads stands in for this limit, its default.
    Resource.UPLOADS: Row(4, "uploads under way", TOO_MANY_UPLOADS, frozenset({Role.UPLOAD})),
    # Each is an open connection that is mostly idle.
    Resource.WATCHERS: Row(128, "watchers of uploads", TOO_MANY_FOLLOWERS, frozenset({Role.UPLOAD})),
    # 64 of the largest requests; most have a few thousand bytes.
    Resource.BODIES: Row(256 << 20, "bytes of request bodies", SHARE_TAKEN, None),
    # Somewhat below the 1,024 connections to an engine, of which the gateway itself needs a few.
    Resource.REQUESTS: Row(960, "requests to the engine", SHARE_TAKEN, frozenset({Role.CHAT})),
    # Bytes that were written and that the client does not take: 8 of the largest answers, thousands of streams.
    Resource.UNREAD: Row(256 << 20, "bytes of answers that lie unread", SHARE_TAKEN, None),
    # Prompts × n, places in the engines' batches. The setting max_sequences stands in for this limit.
    Resource.SEQUENCES: Row(256, "sequences in the engine", SHARE_TAKEN, frozenset({Role.CHAT}), kept=True),
    # Tokens that those may write in all. Four requests of the most that one may ask for.
    Resource.TOKENS: Row(4 << 20, "tokens asked of the engine", SHARE_TAKEN, frozenset({Role.CHAT})),
    # Cost of schemas being compiled (serve/grammar_cost): two of the most costly, or hundreds of common ones.
    Resource.SCHEMAS: Row(200_000, "units of schemas to compile", SHARE_TAKEN, frozenset({Role.CHAT})),
    # By address; where the system allows few open files, half of those. A load balancer is one address: it may hold half.
    Resource.CONNECTIONS: Row(8192, "connections", SHARE_TAKEN, None),
}
"""Every resource that callers share."""


class Holding:
    """One caller's part of one resource, held until closed. May be closed more than once."""

    def __init__(self, shares: "Shares", resource: Resource, who: str) -> None:
        self._shares, self._resource, self._who = shares, resource, who
        self._amount = 0

    def more(self, amount: int = 1) -> None:
        """Hold more of it. Raises Refused with the row's code; what was held is held still."""
        self._shares._move(self._resource, self._who, amount)
        self._amount += amount

    def close(self) -> None:
        """Give all of it back."""
        amount, self._amount = self._amount, 0
        if amount:
            self._shares._move(self._resource, self._who, -amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Shares:
    """Ledger of every shared resource by holder. Safe for threads; refuses at once what there is too little of."""

    def __init__(self, keys: Iterable[Key] = (), limits: Mapping[Resource, int] | None = None) -> None:
        """keys: all there are. limits: instead of the table's."""
        self._limits = {resource: row.limit for resource, row in SHARED.items()} | dict(limits or {})
        known = tuple(keys)
        self._keys = {
            resource: frozenset(key.name for key in known if row.roles is not None and key.may(row.roles))
            for resource, row in SHARED.items()
        }
        self._sole = frozenset(  # one key alone leaves nothing free for anybody
            resource for resource, row in SHARED.items() if row.roles is not None and len(self._keys[resource]) < 2
        )
        self._held: dict[Resource, Counter[str]] = {resource: Counter() for resource in SHARED}
        self._taken = dict.fromkeys(SHARED, 0)
        self._lock = threading.Lock()

    def limit(self, resource: Resource) -> int:
        """The most that all callers may hold together."""
        return self._limits[resource]

    def most(self, resource: Resource) -> int:
        """The most that one caller may hold while nobody else holds any."""
        limit = self._limits[resource]
        return limit if resource in self._sole else (limit + 1) // 2

    def held(self, resource: Resource, who: str) -> int:
        """Amount that one caller holds now."""
        return self._held[resource][who]

    def in_use(self, resource: Resource) -> int:
        """Amount that all callers together hold now."""
        return self._taken[resource]

    def take(self, resource: Resource, who: str, amount: int = 1) -> Holding:
        """Hold `amount` for the caller `who`: a key's name, or `address_holder`. Raises Refused with the row's code."""
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
                del held[who]  # callers that hold nothing are forgotten

    def _check(self, resource: Resource, who: str, mine: int, free: int) -> None:
        """mine, free: as they would be."""
        row, limit = SHARED[resource], self._limits[resource]
        if free < 0:
            raise Refused(row.code, f"there is room for {limit} {row.unit}, and too little of it is free")
        if resource not in self._sole and (mine > free + 1 or (mine > 1 and free < self._kept(resource, who))):
            others = "addresses" if row.roles is None else "keys"
            raise Refused(
                row.code, f"{mine} of {limit} {row.unit} for one caller; what is free is kept for other {others}"
            )

    def _kept(self, resource: Resource, who: str) -> int:
        """Units that stay free for other keys, one for each that holds none; at most half of all."""
        if not SHARED[resource].kept:
            return 0
        others = len(self._keys[resource] - {who}) - sum(one != who for one in self._held[resource])
        return min(others, self._limits[resource] // 2)


def address_holder(host: str) -> str:
    """The holder that stands for callers without a key: their address; of IPv6 the network of 64 bits, all one caller's.

    No key has such a name: a colon is in it.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a test's client
        return f"address:{host}"
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False).network_address
    return f"address:{address}"
