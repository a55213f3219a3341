"""Blocking methods that wait in their threads until a test lets them go."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Held:
    """Methods that wait, in whichever thread calls them, until they are let go. waiting: calls that wait now."""

    go_on: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def hold(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        before = getattr(owner, name)

        def waits(*args: Any, **kwargs: Any) -> Any:
            self.waiting.release()
            assert self.go_on.wait(120)
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, waits)

    async def until(self, calls: int) -> None:
        async with asyncio.timeout(60):
            for _ in range(calls):
                while not self.waiting.acquire(blocking=False):
                    await asyncio.sleep(0.01)
