"""Usage: what the requests of one key used of one version in one hour."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from app.domain.tenants import split_name

MOST: Final = 1 << 32
"""Count from which on it is not believed: sums of such numbers could not be stored."""


@dataclass(frozen=True, slots=True, order=True)
class UsedBy:
    """Subject of a sum. hour: its beginning, UTC. tenant, key: the sender's. adapter: full name, "" for the
    served model itself. version: 0 for the served model itself."""

    hour: datetime
    tenant: str
    key: str
    adapter: str
    version: int

    @property
    def shown(self) -> str | None:
        """The adapter's name for its tenant: plain, unless it is another tenant's; None for the served model itself."""
        owner, plain = split_name(self.adapter)
        return (plain if owner == self.tenant else self.adapter) or None


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over requests that reached an engine. cached_tokens: part of prompt_tokens that came from the engine's cache.

    A stream whose client left before the engine told its counts has the pieces of text that were sent as completion_tokens,
    and the prompt_tokens that were told by then.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def one_request(counts: Mapping[str, Any] | None) -> Usage:
    """Return the usage of one request by OpenAI's token counts; what is missing or no count there is 0."""
    told = counts or {}
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(1, _count(told.get("prompt_tokens")), _count(cached), _count(told.get("completion_tokens")))


def hour_of(moment: datetime) -> datetime:
    """Return the beginning of a moment's hour, UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST else 0
