"""Garbage collection: artefacts that no version needs and no engine may read any more, and uploads no longer needed."""

import asyncio
import logging
import threading
from functools import partial

from app.domain.digest import SHORT, Digest
from app.domain.errors import Unavailable
from app.gateway.components import Components
from app.observe.log import event


class GarbageCollector:
    """Collects in the background whenever something may have been left. `suspect` is safe for threads.

    A count of occasions, not a flag: what is left while a collection runs is looked for again afterwards.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._lock = threading.Lock()
        self._occasions = 1  # a kill before this start may have left something
        self._collected = 0
        self._running: asyncio.Future[bool] | None = None  # not awaited: object storage may take minutes
        components.blobs.spare(self.held)

    def suspect(self) -> None:
        """Something may have been stored or kept that no version needs: look for it after the next reconcile pass."""
        with self._lock:
            self._occasions += 1

    def start_if_due(self) -> None:
        """Begin a collection in the background, if something may have been left and none runs."""
        with self._lock:
            seen = self._occasions
        if seen > self._collected and (self._running is None or self._running.done()):
            self._running = self._components.pools.background.start(self.collect)
            self._running.add_done_callback(partial(self._ended, seen))

    def collect(self) -> bool:
        """Remove what no version needs and no engine holds. Blocking. True while an engine still holds some.

        Only by the lists of engines that all answer: one that was started by somebody else may hold what an earlier
        gateway gave it, and reads it again whenever it likes (engine.md row 3).
        """
        c = self._components
        again = self.forget_uploads()
        standing = frozenset({c.zero.digest} if c.zero else ())
        try:
            removed, spared = c.blobs.collect(lambda: c.catalogue.live_digests() | standing, self._may_be_read)
        except Unavailable as error:
            event("not_collected", logging.WARNING, why=error.message)
            return True
        if removed:
            event("collected", artefacts=removed)
        return again or spared > 0

    def forget_uploads(self) -> bool:
        """Remove kept uploads that no version was made from. Blocking. True when it has to be tried again."""
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
        """Short digests of what the engines may read now; None while one of them does not say."""
        c = self._components
        if not c.reconciler.known:
            return None
        standing = frozenset((c.zero.digest.short,) if c.zero is not None else ())
        return standing.union(name.partition("@")[2][:SHORT] for name in c.reconciler.may_read())

    def _may_be_read(self, digest: Digest) -> bool:
        """Whether an engine may read an artefact now: asked for each, since engines come, go and load meanwhile."""
        held = self.held()
        return held is None or digest.short in held

    def _ended(self, seen: int, collecting: asyncio.Future[bool]) -> None:
        if collecting.cancelled():
            return
        if (error := collecting.exception()) is not None:
            logging.getLogger("gateway").error("collecting garbage broke", exc_info=error)
        elif not collecting.result():
            self._collected = max(self._collected, seen)
