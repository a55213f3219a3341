"""How many versions of one adapter stay in the engines: the active one and the newest of those before or after it."""

from collections.abc import Iterable
from typing import Final

DEFAULT_KEEP_VERSIONS: Final = 5
"""Versions of each adapter besides the active one. Each costs an engine an entry in its list and a place in its caches."""


def unloaded(retired: Iterable[int], keep: int) -> frozenset[int]:
    """Of the numbers of an adapter's retired versions those that are not kept loaded: all but the `keep` newest."""
    return frozenset(sorted(retired, reverse=True)[keep:])
