"""Rate limits per key: token buckets on a monotonic clock, so that setting the system time has no effect.

A bucket holds as many tokens as a minute's (or a day's) limit and refills evenly: an idle key may spend a whole limit at
once. There is one bucket per key, kind and period, created when first needed. Bearers of tokens come and go: buckets that
have refilled are forgotten once there are many. Buckets belong to this process: each of several gateways counts for itself,
and a restart fills them.
"""

import math
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from app.domain.errors import RATE_LIMITED, Refused
from app.domain.tenant_limits import DAY_S, MINUTE_S, Flow


class Kind(StrEnum):
    """Kind of request that is counted."""

    UPLOAD = "uploads"
    SCREEN = "screenings"
    CHAT = "chat requests"


FLOWS: Final[Mapping[Kind, Flow]] = {Kind.UPLOAD: Flow.UPLOADS, Kind.SCREEN: Flow.SCREENINGS, Kind.CHAT: Flow.REQUESTS}
"""Kind → flow whose limit of the key's tenant it counts for as well."""

MANY: Final = 20_000
"""Buckets from which on those that have refilled are looked for; afterwards from twice as many as are left."""


class Rates:
    """Token buckets of every key. Used on the event loop only."""

    def __init__(
        self,
        per_minute: Mapping[Kind, int],
        now: Callable[[], float] = time.monotonic,
        *,
        per_day: Mapping[Kind, int] | None = None,
    ) -> None:
        """per_minute, per_day: requests of each kind that one key may make in that time; 0 or missing: unlimited."""
        self._shares = (("minute", MINUTE_S, per_minute), ("day", DAY_S, per_day or {}))
        self._now = now
        self._buckets: dict[tuple[str, Kind, str], tuple[float, float]] = {}  # tokens, and the time of that count
        self._many = MANY

    def take(self, key: str, kind: Kind) -> None:
        """Take one token of the key called `key` from each of its buckets, or none from any.

        Raises Refused RATE_LIMITED, with the time after which every bucket has one.
        """
        now, waits, left = self._now(), [], {}
        for period, seconds, shares in self._shares:
            if (share := shares.get(kind, 0)) <= 0:
                continue
            at = (key, kind, period)
            tokens, then = self._buckets.get(at, (float(share), now))
            tokens = min(float(share), tokens + (now - then) * share / seconds)
            left[at] = tokens
            if tokens < 1.0:
                waits.append((math.ceil((1.0 - tokens) * seconds / share), f"{share} {kind} a {period}"))
        taken = 0.0 if waits else 1.0
        self._buckets |= {at: (tokens - taken, now) for at, tokens in left.items()}
        if len(self._buckets) > self._many:
            self._forget_full(now)
        if waits:
            wait, most = max(waits)
            raise Refused(RATE_LIMITED, f"{most} are allowed to one key", retry_after=wait)

    def _forget_full(self, now: float) -> None:
        """Forget buckets that have refilled: a new one is as full."""
        of = {period: (seconds, shares) for period, seconds, shares in self._shares}
        kept = {}
        for (key, kind, period), (tokens, then) in self._buckets.items():
            seconds, shares = of[period]
            if tokens + (now - then) * shares[kind] / seconds < shares[kind]:
                kept[key, kind, period] = (tokens, then)
        self._buckets, self._many = kept, max(MANY, 2 * len(kept))
