"""Values of the metric label `adapter`: uploaders choose the names, so the number of labels is bounded."""

from collections.abc import Iterable
from typing import Final

MAX_ADAPTERS: Final = 200
"""Most adapters with series of their own, about 75 each: at most 15,000 series, 1.5 MB a scrape. Others share `(other)`."""

SERVED_MODEL: Final = "(served model)"
"""Label of requests to the served model itself; no adapter can have this name."""

OTHER: Final = "(other)"
"""Label of adapters beyond the bound, and of requests that end after their adapter was deleted."""


class AdapterLabels:
    """Label values, first come, first served: an adapter keeps its label until it is deleted. Not thread-safe.

    Metrics holds its lock around every call.
    """

    def __init__(self, limit: int = MAX_ADAPTERS) -> None:
        self._limit = limit
        self._own: dict[str, None] = {}

    def follow(self, names: Iterable[str]) -> frozenset[str]:
        """Set the adapters that exist now. Returns the labels that ended."""
        existing = dict.fromkeys(names)
        ended = frozenset(self._own) - existing.keys()
        for name in ended:
            del self._own[name]
        for name in existing:
            if len(self._own) >= self._limit:
                break
            self._own.setdefault(name)
        return ended

    def of(self, adapter: str | None) -> str:
        """Return the label value of an adapter; None is the served model."""
        if adapter is None:
            return SERVED_MODEL
        return adapter if adapter in self._own else OTHER
