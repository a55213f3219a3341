"""Garbage collection: removes artefacts that no version needs and no engine may still read, and unneeded kept uploads."""

import asyncio
import logging
import threading
from functools import partial

from app.domain.digest import SHORT, Digest
from app.domain.errors import Unavailable
from app.gateway.components import Components
from app.observe.log import event


class GarbageCollector:
    """Garbage collector: runs in the background whenever garbage may have arisen. `suspect` is thread-safe.

    It counts occasions instead of setting a flag: garbage that arises during a collection is collected afterwards.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._lock = threading.Lock()
        self._occasions = 1  # a kill before this start may have left garbage
        self._collected = 0
        self._running: asyncio.Future[bool] | None = None  # not awaited: object storage may take minutes
        components.blobs.spare(self.held)

    def suspect(self) -> None:
        """Report that an artefact or a kept upload may have become unneeded: collect after the next reconcile pass."""
        with self._lock:
            self._occasions += 1

    def start_if_due(self) -> None:
        """Start a collection in the background if garbage may have arisen and no collection runs."""
        with self._lock:
            seen = self._occasions
        if seen > self._collected and (self._running is None or self._running.done()):
            self._running = self._components.pools.background.start(self.collect)
            self._running.add_done_callback(partial(self._ended, seen))

    def collect(self) -> bool:
        """Remove artefacts that no version needs and no engine holds, and unneeded kept uploads. Blocking.

        Returns whether it must be tried again: an engine still holds some, or the store was unavailable. Artefacts are
        removed only while all engines answer with their lists: an engine that this gateway did not start may hold adapters
        that an earlier gateway loaded, and may read them again at any time (engine.md row 3).
        """
        c = self._components
        again = self.forget_uploads()
        permanent = frozenset({c.zero.digest} if c.zero else ())
        try:
            removed, spared = c.blobs.collect(lambda: c.catalogue.live_digests() | permanent, self._may_be_read)
        except Unavailable as error:
            event("not_collected", logging.WARNING, why=error.message)
            return True
        if removed:
            event("collected", artefacts=removed)
        return again or spared > 0

    def forget_uploads(self) -> bool:
        """Remove kept uploads that no version needs. Blocking. Returns whether it must be tried again."""
        c = self._components
        try:
            removed = c.kept_uploads.collect(c.catalogue.originals_needed)
        except Unavailable as error:
            event("not_collected", logging.WARNING, why=error.message)
            return True
        if removed:
            event("originals_removed", files=removed)
        return False

    def held(self) -> frozenset[str] | None:
        """Return the short digests of artefacts that the engines may read now; None while an engine does not answer."""
        c = self._components
        names = c.reconciler.may_read()  # before it is asked whether that is all: an engine may join in between
        if not c.reconciler.known:
            return None
        permanent = frozenset((c.zero.digest.short,) if c.zero is not None else ())
        return permanent.union(name.partition("@")[2][:SHORT] for name in names)

    def _may_be_read(self, digest: Digest) -> bool:
        """Return whether an engine may read an artefact now; checked for each, as engines come, go and load meanwhile."""
        held = self.held()
        return held is None or digest.short in held

    def _ended(self, seen: int, collecting: asyncio.Future[bool]) -> None:
        if collecting.cancelled():
            return
        if (error := collecting.exception()) is not None:
            logging.getLogger("gateway").error("collecting garbage broke", exc_info=error)
        elif not collecting.result():
            self._collected = max(self._collected, seen)
