"""Who may take an artefact away, and who is about to need it: the two must never meet."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from app.domain.digest import Digest


class Claims(Protocol):
    """Two kinds of block that exclude each other for one digest."""

    def claimed(self, digest: Digest) -> AbstractContextManager[None]:
        """While inside, nobody removes it: between `put` and the row that names it, nobody seems to need it."""

    def removing(self, digest: Digest) -> AbstractContextManager[bool]:
        """Yields whether it may be removed inside; while inside, nobody can claim it."""


class LocalClaims:
    """Among the threads of the one gateway that has the store."""

    def __init__(self) -> None:
        self._claims: Counter[Digest] = Counter()
        self._lock: Final = threading.Lock()

    @contextmanager
    def claimed(self, digest: Digest) -> Iterator[None]:
        """See Claims."""
        with self._lock:
            self._claims[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._claims[digest] -= 1
                if not self._claims[digest]:
                    del self._claims[digest]

    @contextmanager
    def removing(self, digest: Digest) -> Iterator[bool]:
        """See Claims."""
        with self._lock:
            yield digest not in self._claims
