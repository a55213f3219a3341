"""Which copies of artefacts in object storage lie here, and which are to go when they take too much room."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.digest import Digest

IN_USE_S: Final = 60.0
"""Seconds a copy stays after it was last asked for: whoever asked may be about to open its files."""


@dataclass(slots=True)
class _Copy:
    size: int
    used: float


class Copies:
    """Sizes of the copies and when each was last asked for. Safe for threads; touches no file but to measure it."""

    def __init__(self, limit: int | None, in_use_s: float = IN_USE_S) -> None:
        """limit: bytes of all of them together, None: any."""
        self._limit: Final = limit
        self._in_use_s: Final = in_use_s
        self._known: OrderedDict[Digest, _Copy] = OrderedDict()  # the one asked for longest ago first
        self._bytes = 0
        self._lock: Final = threading.Lock()

    @property
    def total(self) -> int:
        """Bytes of all copies."""
        return self._bytes

    def found(self, folders: Iterable[tuple[Digest, Path]]) -> None:
        """What lies here at start, nobody knows for how long: the oldest directory first, and none of it in use."""
        for _, digest, folder in sorted((_age(folder), digest.hex, folder) for digest, folder in folders):
            self._set(Digest(digest), _Copy(size_of(folder), time.monotonic() - self._in_use_s))

    def used(self, digest: Digest, folder: Path) -> None:
        """Somebody asked for the copy, or it was made."""
        known = self._known.get(digest)
        self._set(digest, _Copy(size_of(folder) if known is None else known.size, time.monotonic()))

    def gone(self, digest: Digest) -> None:
        """It is not here any more."""
        with self._lock:
            copy = self._known.pop(digest, None)
            self._bytes -= copy.size if copy is not None else 0

    def excess(self, held: frozenset[str]) -> list[Digest]:
        """What has to go until the rest is within the limit, as far as it may. held: short digests that must stay."""
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
    """Bytes of the files in it; 0 where it has gone."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
