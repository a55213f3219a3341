"""Waiting in tests: for a condition, not for a clock."""

import asyncio
from collections.abc import Callable
from typing import Final

STUCK_S: Final = 120.0
"""Seconds after which a test that waits counts as stuck. It measures nothing: a busy machine may take its time."""

LOOK_S: Final = 0.01


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; it is asked on the event loop, again and again."""
    async with asyncio.timeout(STUCK_S):
        while not condition():
            await asyncio.sleep(LOOK_S)
