"""Limits of a tenant: the stock that it may store, and the flows that it may use in a time, over all gateways."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Final

MINUTE_S: Final = 60.0
DAY_S: Final = 86_400.0

MOST: Final = 1 << 48
"""Largest limit: far below the integers from which on a database or JavaScript loses the last digit."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of one tenant; None: unlimited.

    adapters, versions, bytes: stored at one time; bytes are those of the uploads. concurrent_requests: inference requests
    that are being answered at one time. tokens_per_minute: prompt and completion together.
    """

    adapters: int | None = None
    versions: int | None = None
    bytes: int | None = None
    uploads_per_day: int | None = None
    screenings_per_day: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    def of(self, flow: "Flow") -> int | None:
        """Return the limit of a flow."""
        limit: int | None = getattr(self, RATES[flow].field)
        return limit


UNLIMITED: Final = TenantLimits()


def limits_from(text: str) -> TenantLimits:
    """Parse `name=number` pairs separated by commas. Raises ValueError."""
    found: dict[str, int] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, number = pair.partition("=")
        if name not in _NAMES or name in found or not number.isdecimal() or int(number) > MOST:
            raise ValueError(f"{pair!r} is not one of {', '.join(sorted(_NAMES))}, once, with a number: adapters=50")
        found[name] = int(number)
    return TenantLimits(**found)


_NAMES: Final = frozenset(field.name for field in fields(TenantLimits))


class Flow(StrEnum):
    """Quantity that a tenant uses up. CONCURRENT is given back when a request ends; the others refill evenly."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    UPLOADS = "uploads"
    SCREENINGS = "screenings"
    CONCURRENT = "concurrent"


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate of a flow. field: its limit in TenantLimits. period_s: time in which it refills; None: never. words: unit."""

    field: str
    period_s: float | None
    words: str


RATES: Final[Mapping[Flow, Rate]] = {
    Flow.REQUESTS: Rate("requests_per_minute", MINUTE_S, "requests a minute"),
    Flow.TOKENS: Rate("tokens_per_minute", MINUTE_S, "tokens a minute"),
    Flow.UPLOADS: Rate("uploads_per_day", DAY_S, "uploads a day"),
    Flow.SCREENINGS: Rate("screenings_per_day", DAY_S, "screenings a day"),
    Flow.CONCURRENT: Rate("concurrent_requests", None, "requests at a time"),
}


@dataclass(frozen=True, slots=True)
class Stock:
    """Stock of a tenant: its adapters, their versions that are stored or being screened, and the bytes of those uploads."""

    adapters: int = 0
    versions: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Token bucket: what is left at a time. Below 0: used beyond what was left, to be refilled first."""

    left: float
    at: datetime

    def refilled(self, limit: int, period_s: float, now: datetime) -> "Bucket":
        """Return the bucket at the time `now`: it gains `limit` in `period_s` seconds, evenly, and holds no more than that.

        A clock that was set back refills nothing.
        """
        gained = max(0.0, (now - self.at).total_seconds()) * limit / period_s
        return Bucket(min(float(limit), self.left + gained), now)

    def less(self, amount: float) -> "Bucket":
        """Return the bucket without this amount."""
        return Bucket(self.left - amount, self.at)
