"""Peer sync: keeps one gateway in step with the others on its catalogue; sends heartbeats, follows their changes."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from app.domain.errors import GatewayError
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.garbage import GarbageCollector
from app.gateway.recovery import take_over
from app.observe.log import event
from app.store.cluster.peers import Peers

LOOK_S: Final = 0.5
"""Seconds between two reads of the catalogue's revision (one row): the longest delay until another's change is seen."""

BEAT_S: Final = 4.0
"""Seconds between two heartbeats: five fit into a lease."""


class PeerSync:
    """Background tasks that follow changes, send heartbeats and take over orphaned versions; none waits for another.

    Following a change may take minutes if versions have to be measured again; heartbeats continue meanwhile.
    """

    def __init__(
        self, peers: Peers, components: Components, follower: CatalogueFollower, garbage: GarbageCollector
    ) -> None:
        self._peers = peers
        self._components = components
        self._follower = follower
        self._garbage = garbage
        self._in_thread = components.pools.heartbeat
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Start the tasks. Needs a running loop."""
        work = {
            "following": (LOOK_S, self._look),
            "heartbeat": (BEAT_S, self._beat),
            "orphans": (BEAT_S, self._orphans),
        }
        self._tasks = tuple(asyncio.create_task(self._every(*each), name=name) for name, each in work.items())

    async def stop(self) -> None:
        """Stop the tasks, each after its current step; `Peers.leave` signs off afterwards."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        failing = False
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
                    return
            try:
                await work()
                failing = False
            except GatewayError as error:
                if not failing:  # logged once, not twice a second
                    event("not_following", logging.ERROR, why=error.message)
                failing = True
            except Exception:  # a bug must not end the task: the others would take this gateway for dead
                logging.getLogger("gateway").exception("following broke")

    async def _look(self) -> None:
        if await self._in_thread(self._peers.revision) != self._components.desired.state.revision:
            await self._follower.refresh()

    async def _beat(self) -> None:
        await self._in_thread(self._peers.beat)

    async def _orphans(self) -> None:
        if await self._in_thread(self._peers.orphans):
            await take_over(self._components, self._garbage)
