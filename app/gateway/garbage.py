"""Garbage collection: artefacts that no version needs and no engine may read any more, and originals."""

import logging
import threading

from app.domain.digest import Digest
from app.domain.errors import Unavailable
from app.gateway.components import Rooms
from app.observe.log import event


class Litter:
    """Counter of occasions on which something may have been left that no version needs. Safe for threads.

    A count, not a flag: what is left while a collection runs is looked for again, whoever clears or sets what meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 1  # a kill before this start may have left something
        self._collected = 0

    def left(self) -> None:
        """One more occasion."""
        with self._lock:
            self._left += 1

    def uncollected(self) -> int | None:
        """Count to hand to `collected` afterwards; None when there is nothing to look for."""
        with self._lock:
            return self._left if self._left > self._collected else None

    def collected(self, seen: int) -> None:
        """Everything left up to `seen` is gone."""
        with self._lock:
            self._collected = max(self._collected, seen)


def forget_originals(rooms: Rooms) -> bool:
    """Remove uploads that no version was made from. Blocking. True when it has to be tried again."""
    try:
        removed = rooms.originals.collect(rooms.catalogue.originals_needed)
    except Unavailable as error:
        event("not_collected", logging.WARNING, why=error.message)
        return True
    if removed:
        event("originals_removed", files=removed)
    return False


def collect_garbage(rooms: Rooms) -> bool:
    """Remove artefacts that no version needs and no engine holds. Blocking. True while an engine still holds some.

    Only by the lists of engines that all answer: one that was started by somebody else may hold what an earlier gateway
    gave it, and reads it again whenever it likes (engine.md row 3).
    """
    again = forget_originals(rooms)
    standing = frozenset({rooms.noop.digest} if rooms.noop else ())
    try:
        removed, spared = rooms.blobs.collect(
            lambda: rooms.catalogue.live_digests() | standing, lambda digest: _may_be_read(rooms, digest)
        )
    except Unavailable as error:
        event("not_collected", logging.WARNING, why=error.message)
        return True
    if removed:
        event("collected", artefacts=removed)
    return again or spared > 0


def _may_be_read(rooms: Rooms, digest: Digest) -> bool:
    """Whether an engine may read an artefact now: asked for each, since engines come, go and load meanwhile."""
    held = (name.partition("@")[2] for name in rooms.reconciler.may_read())
    return not rooms.reconciler.known or any(name.startswith(digest.short) for name in held)
