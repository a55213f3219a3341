"""Which value the label `adapter` takes: names are strangers', so there is a bound to how many become series."""

from collections.abc import Iterable
from typing import Final

MAX_ADAPTERS: Final = 200
"""Adapters with series of their own, about 75 each: 15,000 series at the most, some 1.5 MB a scrape. All further ones share
`(other)`."""

SERVED_MODEL: Final = "(served model)"
"""Label of requests to the served model itself; no adapter can be called so."""

OTHER: Final = "(other)"
"""Label of adapters beyond the bound, and of requests that end after their adapter was deleted."""


class AdapterLabels:
    """First come, first served: who has a label keeps it until its adapter is gone. Not thread-safe: Metrics locks."""

    def __init__(self, limit: int = MAX_ADAPTERS) -> None:
        self._limit = limit
        self._own: dict[str, None] = {}

    def follow(self, names: Iterable[str]) -> frozenset[str]:
        """These adapters exist now. Returns those whose label ended."""
        there = dict.fromkeys(names)
        gone = frozenset(self._own) - there.keys()
        for name in gone:
            del self._own[name]
        for name in there:
            if len(self._own) >= self._limit:
                break
            self._own.setdefault(name)
        return gone

    def of(self, adapter: str | None) -> str:
        """The label value; None is the served model."""
        if adapter is None:
            return SERVED_MODEL
        return adapter if adapter in self._own else OTHER
