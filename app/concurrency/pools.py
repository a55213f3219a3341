"""Bounded thread pools, one for each kind of blocking work.

The event loop's own executor has `min(32, cpus + 4)` threads for everything: on one core, four uploads and a rescreening
took them all for minutes, and /ready, GET, DELETE and the heartbeat waited. Here each kind of work waits for its own only.
"""

import asyncio
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, fields
from functools import partial
from typing import Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

STOP_S: Final = 10.0
"""Seconds that work under way gets to end when the pools are closed: an orderly end of a few statements and writes."""

RESCREENINGS: Final = 1
"""Rescreenings at once (rescreening.py), besides the uploads."""

READERS: Final = 4
"""Threads for one kind of short database or disk work: it waits for the disk, not for the processor."""


class Pool:
    """Named thread pool of bounded width. Threads are made when they are needed and show as `<name>_<n>` in py-spy."""

    def __init__(self, name: str, threads: int) -> None:
        self.name: Final = name
        self.threads: Final = threads
        self._closed = False
        self._executor: Final = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a thread and wait for it. Cancelled, it stops waiting; what has begun goes on."""
        return await self.start(work, *args, **kwargs)

    def start(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Begin blocking work and return its future; needs a running loop.

        Shield it where the work must go on without the caller: cancelling the future takes work out of the queue.
        """
        context = copy_context()  # request id and trace go along
        return asyncio.wrap_future(self._executor.submit(context.run, _run, partial(work, *args, **kwargs)))

    async def to_the_end(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a thread and never leave it behind: cancelled, wait for its end before saying so."""
        running = self.start(work, *args, **kwargs)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                try:
                    await asyncio.wait({running})
                except asyncio.CancelledError:  # asked twice: still not before the thread is done
                    continue
            if not running.cancelled():
                running.exception()  # looked at, so that the loop does not complain about it
            raise

    async def free(self, release: Callable[[], None]) -> None:
        """Let go of something large in a thread, to the end; at once where the pool is closed, since chat is over too."""
        if self._closed:
            release()
        else:
            await self.to_the_end(release)

    def close(self, *, wait: bool) -> None:
        """Take no more work and drop what waits. wait: block until what runs has ended, however long that takes."""
        self._closed = True
        self._executor.shutdown(wait=wait, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Pools:
    """Every pool of one gateway.

    screening: uploads from their sealed bytes to the stored artefact, gigabytes and minutes each. receiving: bodies to
    the quarantine's disk, and freeing it. store: changes to the catalogue. reading: what GET routes read. following: the
    catalogue's state into the routes, where versions may be measured again. background: garbage, possibly in object
    storage. fetching: artefacts that an engine asks for, possibly from there. heartbeat: signs of life to the other
    gateways. readiness: /ready. metrics: /metrics, one scrape at a time. bodies: large bodies of inference requests, read
    and checked, and large answers.
    """

    screening: Pool
    receiving: Pool
    store: Pool
    reading: Pool
    following: Pool
    background: Pool
    fetching: Pool
    heartbeat: Pool
    readiness: Pool
    metrics: Pool
    bodies: Pool

    @classmethod
    def for_uploads(cls, uploads: int) -> Self:
        """Pools of a gateway that takes so many uploads at once: none of those ever waits for a thread."""
        return cls(
            screening=Pool("screening", uploads + RESCREENINGS),
            receiving=Pool("receiving", uploads + RESCREENINGS),
            store=Pool("store", READERS),
            reading=Pool("reading", READERS),
            following=Pool("following", 1),  # one reading at a time, or an older one might come last
            background=Pool("background", 1),
            fetching=Pool("fetching", READERS),
            heartbeat=Pool("heartbeat", 3),  # a thread for each task of peer_sync.py: none waits for another's
            readiness=Pool("readiness", 2),
            metrics=Pool("metrics", 1),
            bodies=Pool("bodies", 2),  # Python runs one at a time: more would only hold more memory
        )

    def close(self) -> None:
        """Take no more work and give what runs STOP_S to end. Blocking.

        The interpreter's exit waits for work that goes on after that, as for any thread of an executor.
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
    """Do the work. An error leaves the thread without its frames' variables.

    They may hold gigabytes, an artefact that could not be written for one, and would be freed wherever the error is
    forgotten: on the event loop.
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
            traceback.clear_frames(one.__traceback__)
            rest += (one.__cause__, one.__context__)
