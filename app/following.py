"""Keeps one gateway in step with the others on its catalogue: says that it lives, and follows what they change."""

import asyncio
import contextlib
import logging
from typing import Final

from app.errors import GatewayError
from app.observe.log import event
from app.publishing import Publishing
from app.store.peers import Peers

LOOK_S: Final = 0.5
"""Seconds between two looks at the catalogue's revision: how late another's change is seen. One row is read."""

BEAT_S: Final = 4.0
"""Seconds between two signs of life: five fit into a lease."""


class Following:
    """A task that looks and beats for as long as the gateway runs."""

    def __init__(self, peers: Peers, publishing: Publishing) -> None:
        self._peers = peers
        self._publishing = publishing
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._away = False

    def start(self) -> None:
        """Start. Needs a running loop."""
        self._task = asyncio.create_task(self._run(), name="following")

    async def stop(self) -> None:
        """Stop after the look under way; what is said last is said by `Peers.leave`."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        beat = asyncio.get_running_loop().time()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stopping.wait()
                    return
            try:
                if asyncio.get_running_loop().time() >= beat:
                    beat = asyncio.get_running_loop().time() + BEAT_S
                    await self._beat()
                if await asyncio.to_thread(self._peers.revision) != self._publishing.followed:
                    await self._publishing.refresh()
                self._away = False
            except GatewayError as error:
                if not self._away:  # once, not twice a second
                    event("not_following", logging.ERROR, why=error.message)
                self._away = True
            except Exception:  # a bug must not end it: the others would take us for dead
                logging.getLogger("gateway").exception("following broke")

    async def _beat(self) -> None:
        await asyncio.to_thread(self._peers.beat)
        if await asyncio.to_thread(self._peers.orphans):
            await self._publishing.take_over()
