"""Turns: one task at a time, and the waiting ones by holder in rotation, so that nobody's queue is anybody else's."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """Lock whose waiters are served round robin over their holders, and in order within one. Used on the event loop."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # the holder to be served next comes first

    @asynccontextmanager
    async def turn(self, holder: Hashable) -> AsyncIterator[None]:
        """Hold the turn for the duration of the context, after waiting for it."""
        if self._taken:
            await self._wait(holder)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, holder: Hashable) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # the turn came in the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next waiter, or free it."""
        while self._waiting:
            holder = next(iter(self._waiting))
            queue = self._waiting.pop(holder)
            waiter = queue.popleft()
            if queue:
                self._waiting[holder] = queue  # after all others
            if not waiter.done():
                waiter.set_result(None)
                return
        self._taken = False
