"""Account of local copies of artefacts in object storage, and of the copies to remove when they exceed the limit."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.digest import Digest

IN_USE_S: Final = 60.0
"""Seconds a copy stays after its last use: its reader may be about to open the files."""


@dataclass(slots=True)
class _Copy:
    size: int
    used: float


class Copies:
    """Sizes of the copies and the time each was last used. Thread-safe; touches files only to measure them."""

    def __init__(self, limit: int | None, in_use_s: float = IN_USE_S) -> None:
        """limit: most bytes of all copies together; None: unlimited."""
        self._limit: Final = limit
        self._in_use_s: Final = in_use_s
        self._known: OrderedDict[Digest, _Copy] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._lock: Final = threading.Lock()

    @property
    def total(self) -> int:
        """Bytes of all copies together."""
        return self._bytes

    def found(self, folders: Iterable[tuple[Digest, Path]]) -> None:
        """Add the copies found at start: their last use is unknown, so the oldest directory comes first, none in use."""
        for _, digest, folder in sorted((_age(folder), digest.hex, folder) for digest, folder in folders):
            self._set(Digest(digest), _Copy(size_of(folder), time.monotonic() - self._in_use_s))

    def used(self, digest: Digest, folder: Path) -> None:
        """Record that a copy was made or is about to be read."""
        known = self._known.get(digest)
        self._set(digest, _Copy(size_of(folder) if known is None else known.size, time.monotonic()))

    def gone(self, digest: Digest) -> None:
        """Record that a copy was removed."""
        with self._lock:
            copy = self._known.pop(digest, None)
            self._bytes -= copy.size if copy is not None else 0

    def excess(self, held: frozenset[str]) -> list[Digest]:
        """Return the copies to remove to get within the limit, as far as possible, least recently used first.

        held: short digests that must stay; copies in use stay, too.
        """
        if self._limit is None or self._bytes <= self._limit:
            return []
        with self._lock:
            over, now, found = self._bytes - self._limit, time.monotonic(), []
            for digest, copy in self._known.items():
                if over <= 0:
                    break
                if digest.short not in held and now - copy.used >= self._in_use_s:
                    over -= copy.size
                    found.append(digest)
            return found

    def _set(self, digest: Digest, copy: _Copy) -> None:
        with self._lock:
            before = self._known.pop(digest, None)
            self._known[digest] = copy
            self._bytes += copy.size - (before.size if before is not None else 0)


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a directory; 0 if it does not exist."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
