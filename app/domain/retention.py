"""Retention of an adapter's versions in the engines: the active one and the newest of the retired ones stay loaded."""

from collections.abc import Iterable
from typing import Final

DEFAULT_KEEP_VERSIONS: Final = 5
"""Versions of each adapter kept besides the active one. Each costs an engine a list entry and a place in its caches."""


def unloaded(retired: Iterable[int], keep: int) -> frozenset[int]:
    """Return the numbers of the retired versions that are not kept loaded: all but the `keep` newest."""
    return frozenset(sorted(retired, reverse=True)[keep:])
