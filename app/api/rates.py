"""How often one key may ask: token buckets on a monotonic clock, so that setting the time changes nothing.

A bucket holds as many tokens as a minute's share and refills evenly: a quiet key may spend a whole minute at once. There is
one bucket a key and kind, made when first needed; both are known beforehand, so memory is bounded.
"""

import math
import time
from collections.abc import Callable, Mapping
from enum import StrEnum

from app.errors import RATE_LIMITED, Refused


class Kind(StrEnum):
    """What is counted."""

    UPLOAD = "uploads"
    SCREEN = "screenings"
    CHAT = "chat requests"


class Rates:
    """Every key's buckets. Used on the event loop only."""

    def __init__(self, per_minute: Mapping[Kind, int], now: Callable[[], float] = time.monotonic) -> None:
        """per_minute: requests of each kind that one key may make in a minute; 0 or missing: any number."""
        self._per_minute = per_minute
        self._now = now
        self._buckets: dict[tuple[str, Kind], tuple[float, float]] = {}  # tokens, and when that was counted

    def take(self, key: str, kind: Kind) -> None:
        """Take one token of the key called `key`. Raises Refused RATE_LIMITED, which says after how long one is there."""
        share = self._per_minute.get(kind, 0)
        if share <= 0:
            return
        now = self._now()
        tokens, then = self._buckets.get((key, kind), (float(share), now))
        tokens = min(float(share), tokens + (now - then) * share / 60.0)
        if tokens < 1.0:
            self._buckets[key, kind] = (tokens, now)
            wait = math.ceil((1.0 - tokens) * 60.0 / share)
            raise Refused(RATE_LIMITED, f"{share} {kind} a minute are allowed to one key", retry_after=wait)
        self._buckets[key, kind] = (tokens - 1.0, now)
