"""Bounded thread pools, one for each kind of blocking work.

The event loop's default executor has `min(32, cpus + 4)` threads for all work. On one core, four uploads and a
rescreening occupied all of them for minutes, and /ready, GET, DELETE and the heartbeat waited. With these pools each
kind of work waits only for its own kind.
"""

import asyncio
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, fields
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_COROUTINES: Final = CO_COROUTINE | CO_ASYNC_GENERATOR

STOP_S: Final = 10.0
"""Seconds that running work gets to end when the pools are closed: time for a few statements and writes to complete."""

RESCREENINGS: Final = 1
"""Rescreenings that may run at the same time (rescreening.py), in addition to the uploads."""

READERS: Final = 4
"""Threads of a pool for short database or disk work, which waits for the disk and not for the processor."""


RESOLVERS: Final = 16
"""Threads that resolve names of webhooks' targets: one for each message that webhook_delivery.py sends at the same time;
imports have READERS in addition."""


class Pool:
    """Named thread pool of bounded width. Threads are created on demand and appear as `<name>_<n>` in py-spy."""

    def __init__(self, name: str, threads: int) -> None:
        self.name: Final = name
        self.threads: Final = threads
        self._closed = False
        self._executor: Final = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a thread and wait for it. If cancelled, stop waiting; work that has started continues."""
        return await self.start(work, *args, **kwargs)

    def start(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start blocking work and return its future. Needs a running loop.

        Cancelling the future removes work that is still queued: shield it if the work must go on without the caller.
        """
        context = copy_context()  # the thread sees the caller's request id and trace
        return asyncio.wrap_future(self._executor.submit(context.run, _run, partial(work, *args, **kwargs)))

    async def to_the_end(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a thread; if cancelled, wait for the work to end before raising CancelledError."""
        running = self.start(work, *args, **kwargs)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                try:
                    await asyncio.wait({running})
                except asyncio.CancelledError:  # cancelled again: still wait for the thread
                    continue
            if not running.cancelled():
                running.exception()  # retrieved, so that the loop does not log it
            raise

    async def free(self, release: Callable[[], None]) -> None:
        """Release a large object in a thread and wait for it, even if cancelled.

        If the pool is closed, release it in the calling thread: there are no more inference requests to delay.
        """
        if self._closed:
            release()
        else:
            await self.to_the_end(release)

    def close(self, *, wait: bool) -> None:
        """Accept no more work and drop queued work. wait: block until running work has ended, however long that takes."""
        self._closed = True
        self._executor.shutdown(wait=wait, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Pools:
    """All thread pools of one gateway.

    screening: uploads, from their sealed bytes to the stored artefact; gigabytes and minutes each.
    receiving: writing uploaded bodies to the quarantine's disk, and freeing that space.
    store: changes to the catalogue.
    reading: reads for GET routes.
    following: applying the catalogue's state to the routing table, for which versions may be measured again.
    background: garbage collection, possibly in object storage.
    fetching: reading artefacts that an engine requests, possibly from object storage.
    heartbeat: signs of life for the other gateways, and looking for keys that they revoked.
    accounts: counting usage, drawing from limits, and messages to webhooks.
    names: resolving names of webhooks' targets, which may take half a minute each (one tenant has at most four), and of
        servers that imports read.
    readiness: /ready.
    metrics: /metrics, one scrape at a time.
    bodies: decoding and checking large inference bodies, and large answers.
    """

    screening: Pool
    receiving: Pool
    store: Pool
    reading: Pool
    following: Pool
    background: Pool
    fetching: Pool
    heartbeat: Pool
    accounts: Pool
    names: Pool
    readiness: Pool
    metrics: Pool
    bodies: Pool

    @classmethod
    def for_uploads(cls, uploads: int) -> Self:
        """Return the pools of a gateway that accepts `uploads` uploads at a time; none of those ever waits for a thread."""
        return cls(
            screening=Pool("screening", uploads + RESCREENINGS),
            receiving=Pool("receiving", uploads + RESCREENINGS),
            store=Pool("store", READERS),
            reading=Pool("reading", READERS),
            following=Pool("following", 1),  # one read at a time, or an older state might be applied last
            background=Pool("background", 1),
            fetching=Pool("fetching", READERS),
            heartbeat=Pool("heartbeat", 4),  # one thread for each task of peer_sync.py, one for key_ring.py
            accounts=Pool(
                "accounts", 4
            ),  # two for tenant_meter.py, one for usage_ledger.py and webhook_delivery.py each
            names=Pool("names", RESOLVERS + READERS),
            readiness=Pool("readiness", 2),
            metrics=Pool("metrics", 1),
            bodies=Pool("bodies", 2),  # Python runs one thread at a time: more would only hold more memory
        )

    def close(self) -> None:
        """Accept no more work and give running work STOP_S to end. Blocking.

        The interpreter's exit waits for work that takes longer, as for any thread of an executor.
        """
        each: list[Pool] = [getattr(self, field.name) for field in fields(self)]
        for pool in each:
            pool.close(wait=False)
        waiting = threading.Thread(target=_wait_for, args=(each,), name="closing", daemon=True)
        waiting.start()
        waiting.join(STOP_S)


def _wait_for(pools: list[Pool]) -> None:
    for pool in pools:
        pool.close(wait=True)


def _run(work: Callable[[], T]) -> T:
    """Run `work`; if it fails, clear the local variables of the error's frames before raising it.

    Those variables may hold gigabytes, for example an artefact that could not be written, which would otherwise be
    freed when the error is dropped: on the event loop. Frames of coroutines are left alone: an error that was raised before
    has some, and clearing the frame of one that waits would end it.
    """
    try:
        return work()
    except BaseException as error:
        _forget_variables(error)
        raise


def _forget_variables(error: BaseException) -> None:
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            _clear_frames(one.__traceback__)
            rest += (one.__cause__, one.__context__)


def _clear_frames(trace: TracebackType | None) -> None:
    for frame, _ in traceback.walk_tb(trace):
        if not frame.f_code.co_flags & _COROUTINES:
            with suppress(RuntimeError):  # it is running
                frame.clear()
