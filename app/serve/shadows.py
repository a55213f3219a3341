"""Shadows: copies of requests, sent to another version in the background. Nobody waits for them, and nobody is delayed."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, Final

from app.domain.errors import GatewayError, Refused
from app.serve.admission import Admission
from app.serve.request_load import Load

MAX_SHADOWS: Final = 8
"""Most copies under way at one time: their bodies are in memory, and their answers take the engine's time."""

SHADOW_S: Final = 300.0
"""Seconds after which a copy is given up, also if the engine still writes its answer."""


class Shadows:
    """Copies under way. Used on the event loop."""

    def __init__(self, admission: Admission, dropped: Callable[[str], None] = lambda _: None) -> None:
        """dropped: called with the reason if a copy is not sent: `too_many`, or `busy`: the engine has others to answer."""
        self._admission = admission
        self._dropped = dropped
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, load: Load, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin `work` in the background, if there is room for this load. Its errors are ignored: hooks count them."""
        if len(self._tasks) >= MAX_SHADOWS:
            self._dropped("too_many")
            return
        held = ExitStack()
        try:
            self._admission.spare(load, held)
        except Refused:
            self._dropped("busy")
            return
        task = asyncio.create_task(_run(work, held), name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give up every copy."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _run(work: Callable[[], Coroutine[Any, Any, None]], held: ExitStack) -> None:
    with held, contextlib.suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(SHADOW_S):
            await work()
