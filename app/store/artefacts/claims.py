"""Claims on artefacts: locks between gateways about to need an artefact and those about to delete it.

An artefact in a directory is renamed away inside a lock (`removing`). In object storage a deletion may take minutes,
too long to hold a lock that is meant for milliseconds: there the artefact is marked first and deleted outside the lock
(`deleting`). No acknowledged upload is lost then, because:

    1  A mark is set in the same step as the check that finds the artefact unneeded and unclaimed.
    2  A claim is granted only while there is no mark, and no mark is set while there is a claim.
    3  A delete request is sent only under a valid mark: mark and clock are checked again before each request.
    4  A mark is removed when every request was answered. After a failure, or the death of the deleting process, it
       expires MARK_S after it was set: the last request was sent within GO_S and given up within DELETE_S; none is in
       flight any more.
    5  So nothing deletes the artefact once a claim is granted. `put` comes after the claim and writes everything that was
       deleted; the claim is released after the row that names the artefact was written. Only uploads with a row are
       acknowledged.

A claim cancels a deletion: the deleting gateway looks for claims before each request and stops.
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
"""Seconds after setting its mark within which a deletion sends requests: its three requests usually take a second."""

LATE_S: Final = 30.0
"""Seconds that a request may still take to come into effect in the storage after its sender gave it up."""

MARK_S: Final = GO_S + DELETE_S + LATE_S
"""Seconds after which a mark that was not removed expires."""

CLAIM_S: Final = 60.0
"""Seconds that a claim waits for a deletion in progress: twice the limit of its one request still in flight."""

LOOK_S: Final = 0.2
"""Seconds between two checks whether the deletion is over."""

GoOn = Callable[[], bool]
"""Check called before each delete request: returns whether it may be sent. Raises Unavailable if that is unknown."""


class Claims(Protocol):
    """Context managers that exclude each other for one digest."""

    def claimed(self, digest: Digest) -> AbstractContextManager[None]:
        """Protect the digest from removal inside the block: between `put` and the row that names it, it looks unneeded.

        Raises Unavailable STORE_BUSY if a deletion in progress does not end within CLAIM_S.
        """

    def removing(self, digest: Digest) -> AbstractContextManager[bool]:
        """Yield whether the artefact may be removed in the block.

        Inside the block no claim is granted, and no other gateway can write.
        """

    def deleting(self, digest: Digest) -> AbstractContextManager[GoOn | None]:
        """Yield None if the artefact may not be deleted, else the check to call before each request.

        Inside the block no claim on it is granted, but all gateways can write. If the block raises, no claim is granted
        until the mark has expired.
        """


class LocalClaims:
    """Claims among the threads of the only gateway on a store. Its marks end with the process, as do its requests."""

    def __init__(self) -> None:
        self._claims: Counter[Digest] = Counter()
        self._marks: dict[Digest, float] = {}  # when each expires, by the monotonic clock
        self._lock: Final = threading.Lock()

    @contextmanager
    def claimed(self, digest: Digest) -> Iterator[None]:
        """See `Claims.claimed`."""
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
        """See `Claims.removing`."""
        with self._lock:
            yield digest not in self._claims

    @contextmanager
    def deleting(self, digest: Digest) -> Iterator[GoOn | None]:
        """See `Claims.deleting`."""
        began = time.monotonic()
        with self._lock:
            free = digest not in self._claims and not self._marked(digest)
            if free:
                self._marks[digest] = began + MARK_S
        if not free:
            yield None
            return
        yield lambda: in_time(began) and digest not in self._claims
        del self._marks[digest]  # not if the block raised

    def _marked(self, digest: Digest) -> bool:
        return self._marks.get(digest, 0.0) > time.monotonic()


def in_time(began: float) -> bool:
    """Return whether a deletion whose mark was set after `began` (monotonic clock) may still send requests."""
    return time.monotonic() - began < GO_S


def wait_while(marked: Callable[[], bool], digest: Digest) -> None:
    """Block until the digest is no longer marked. Raises Unavailable STORE_BUSY after CLAIM_S."""
    deadline = time.monotonic() + CLAIM_S
    while marked():
        if time.monotonic() >= deadline:
            raise Unavailable(
                STORE_BUSY, f"artefact {digest.short} is being deleted from the object storage; try again"
            )
        time.sleep(LOOK_S)
