"""An upload cancelled at its n-th await, for every n until it comes through: nothing is lost, held, or half visible."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from app.store.audit import Promise
from tests.support.audited import rested
from tests.support.house import OpenHouse, Running, form

AWAITS = 400


class CancelledAt:
    """Awaits `work`, and throws a cancellation into it at its n-th suspension; `done` tells whether it got through."""

    def __init__(self, work: Coroutine[Any, Any, Any], n: int) -> None:
        self._work, self._n = work, n
        self.done = False

    def __await__(self) -> Generator[Any, None, Any]:
        sent: Any = None
        for count in range(1 << 30):
            try:
                waited = self._work.send(sent) if count != self._n else self._work.throw(asyncio.CancelledError())
            except StopIteration as end:
                self.done = count <= self._n
                return end.value
            sent = yield waited


async def push_cancelled(running: Running, name: str, seed: int, n: int) -> bool:
    """Whether the upload ended before its n-th await."""
    request = running.http.post("/adapters", files=form(name, seed))
    cancelled = CancelledAt(request, n)

    async def run() -> None:
        await cancelled

    try:
        await asyncio.create_task(run())
    except asyncio.CancelledError:
        return False
    return cancelled.done


@pytest.mark.parametrize("kind", ["new", "known", "with the engine away"])
async def test_an_upload_cancelled_at_any_await(open_gateway: OpenHouse, kind: str) -> None:
    async with open_gateway(tau=1e9) as running:
        assert (await running.http.post("/adapters", files=form("known", 0))).status_code == 201
        if kind == "with the engine away":
            running.simulator.faults["load"] = "500"
            running.simulator.faults["health"] = "503"
        for n in range(AWAITS):
            name, seed = ("known", 0) if kind == "known" else ("style", n + 1)
            if await push_cancelled(running, name, seed, n):
                break
        else:
            raise AssertionError("it never came through")
        assert n > 3, "an upload awaits more often than that"
        running.simulator.faults.clear()
        assert (await running.http.post("/adapters", files=form("after", 999))).status_code in (201, 202)
        async with asyncio.timeout(20):
            while running.house.context.pipeline._working:
                await asyncio.sleep(0.02)
        await rested(running, [Promise("known", 1)])
        assert not list((running.data / "quarantine").iterdir())
        async with asyncio.timeout(10):
            while running.house.context.pipeline.rooms.catalogue.unfinished():
                await asyncio.sleep(0.02)
