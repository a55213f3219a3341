"""Claims on artefacts: who is about to need one, and who may take it away; the two must never meet.

A directory's artefact is renamed away inside a lock (`removing`). Object storage may take minutes for what a lock is held
milliseconds for, so there it is marked first and deleted outside (`deleting`). Why nothing acknowledged is lost then:

    1  A mark is made in one step with the look that finds the artefact unneeded and unclaimed.
    2  A claim is granted only while there is no mark, and no mark is made while there is a claim.
    3  A request to delete is sent only under a mark that lives: it is asked for again before each, and the clock as well.
    4  A mark goes when every request was answered. After a failure, or the deleter's death, it lapses MARK_S after it was
       made: the last request was sent within GO_S, and given up within DELETE_S; none is under way any more.
    5  So nothing deletes the artefact from a granted claim on. `put` comes after the claim and writes whatever was deleted;
       the claim is let go after the row that names the artefact was written. Only what has a row is acknowledged.

A claim cancels a deletion: who deletes looks for claims before each request and stops.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from app.domain.digest import Digest
from app.domain.errors import STORE_BUSY, Unavailable
from app.store.artefacts.s3_client import DELETE_S

GO_S: Final = 60.0
"""Seconds after its mark within which a deletion sends requests: three of them take a second, most of the time."""

LATE_S: Final = 30.0
"""Seconds that a request which its sender gave up may still take to come into effect in the storage."""

MARK_S: Final = GO_S + DELETE_S + LATE_S
"""Seconds after which a mark that nobody took away has lapsed."""

CLAIM_S: Final = 60.0
"""Seconds that a claim waits for a deletion under way: twice what its one request still under way may take."""

LOOK_S: Final = 0.2
"""Seconds between two looks whether it is over."""

GoOn = Callable[[], bool]
"""Asked before each request to delete: whether it may be sent. Raises Unavailable where that cannot be known."""


class Claims(Protocol):
    """Blocks that exclude each other for one digest."""

    def claimed(self, digest: Digest) -> AbstractContextManager[None]:
        """While inside, nobody removes it: between `put` and the row that names it, nobody seems to need it.

        Raises Unavailable STORE_BUSY when a deletion under way does not end within CLAIM_S.
        """

    def removing(self, digest: Digest) -> AbstractContextManager[bool]:
        """Yields whether it may be removed inside; while inside, nobody can claim it, and no other gateway can write."""

    def deleting(self, digest: Digest) -> AbstractContextManager[GoOn | None]:
        """Yields None where it may not be deleted. While inside no claim on it is granted, but everybody can write; and
        when the block raises, none until the mark has lapsed.
        """


class LocalClaims:
    """Among the threads of the one gateway that has the store. Its marks end with it, and so does what it had under way."""

    def __init__(self) -> None:
        self._claims: Counter[Digest] = Counter()
        self._marks: dict[Digest, float] = {}  # when each lapses, by the monotonic clock
        self._lock: Final = threading.Lock()

    @contextmanager
    def claimed(self, digest: Digest) -> Iterator[None]:
        """See Claims."""
        with self._lock:
            self._claims[digest] += 1
        try:
            wait_while(lambda: self._marked(digest), digest)
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

    @contextmanager
    def deleting(self, digest: Digest) -> Iterator[GoOn | None]:
        """See Claims."""
        began = time.monotonic()
        with self._lock:
            free = digest not in self._claims and not self._marked(digest)
            if free:
                self._marks[digest] = began + MARK_S
        if not free:
            yield None
            return
        yield lambda: in_time(began) and digest not in self._claims
        del self._marks[digest]  # not where the block raised

    def _marked(self, digest: Digest) -> bool:
        return self._marks.get(digest, 0.0) > time.monotonic()


def in_time(began: float) -> bool:
    """Whether a deletion whose mark was made after `began` (monotonic clock) may still send requests."""
    return time.monotonic() - began < GO_S


def wait_while(marked: Callable[[], bool], digest: Digest) -> None:
    """Block until a digest is not marked any more. Raises Unavailable STORE_BUSY after CLAIM_S."""
    deadline = time.monotonic() + CLAIM_S
    while marked():
        if time.monotonic() >= deadline:
            raise Unavailable(
                STORE_BUSY, f"artefact {digest.short} is being deleted from the object storage; try again"
            )
        time.sleep(LOOK_S)
