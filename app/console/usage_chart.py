"""Usage of the last days for people: tokens by day, and sums by tenant, key and adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from app.domain.usage import Usage
from app.store.catalogue.usage import UsageStore

DAYS: Final = 30
"""Days that are shown."""

MOST: Final = 50_000
"""Most lines that are read, each of an hour, a key and a version: they are in memory at once."""

SHOWN: Final = 200
"""Most sums on the page, those with the most tokens first."""


@dataclass(frozen=True, slots=True)
class UsedDay:
    """One day, UTC. tokens: prompt and completion."""

    date: date
    used: Usage

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.used.prompt_tokens + self.used.completion_tokens


@dataclass(frozen=True, slots=True)
class UsedSum:
    """Usage of one key and adapter over all days. adapter: None for the served model itself."""

    tenant: str
    key: str
    adapter: str | None
    used: Usage


@dataclass(frozen=True, slots=True)
class UsageShown:
    """The last DAYS days, oldest first, and the largest sums. complete: False if there was more than was read."""

    days: tuple[UsedDay, ...]
    sums: tuple[UsedSum, ...]
    complete: bool

    @property
    def most(self) -> int:
        """Largest number of tokens of a day, at least 1."""
        return max((day.tokens for day in self.days), default=0) or 1


def usage_shown(store: UsageStore, tenant: str | None, today: date | None = None) -> UsageShown:
    """Read the usage until `today` (default: now, UTC) of a tenant, or of all. Blocking."""
    today = today or datetime.now(UTC).date()
    first = today - timedelta(days=DAYS - 1)
    begin, end = (datetime.combine(day, time(), UTC) for day in (first, today + timedelta(days=1)))
    lines = store.between(begin, end, tenant, None, MOST + 1)
    by_day: dict[date, Usage] = {first + timedelta(days=number): Usage() for number in range(DAYS)}
    sums: dict[tuple[str, str, str | None], Usage] = {}
    for who, used in lines[:MOST]:
        by_day[who.hour.date()] += used
        at = (who.tenant, who.key, who.shown)
        sums[at] = sums.get(at, Usage()) + used
    return UsageShown(tuple(UsedDay(*one) for one in by_day.items()), tuple(_largest(sums)), len(lines) <= MOST)


def _largest(sums: Mapping[tuple[str, str, str | None], Usage]) -> Sequence[UsedSum]:
    shown = [UsedSum(*who, used) for who, used in sums.items()]
    shown.sort(key=lambda one: (-one.used.prompt_tokens - one.used.completion_tokens, one.tenant, one.key))
    return shown[:SHOWN]
