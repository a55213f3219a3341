"""A coroutine cancelled at its n-th await, whichever that is: for every n, every await has its turn."""

import asyncio
from collections.abc import Coroutine, Generator
from enum import Enum
from typing import Any, Final

from tests.support.tally import injected

KIND: Final = "cancellations"


class Moment(Enum):
    """When: as it begins to wait, or just as what it waited for has come, which would otherwise be lost with it."""

    WAITING = "waiting"
    ARRIVED = "arrived"


class CancelledAt:
    """Awaits `work`, and cancels it at its n-th suspension, counted from 1; `done` tells whether it ended before that."""

    def __init__(self, work: Coroutine[Any, Any, Any], n: int, moment: Moment) -> None:
        self._work, self._n, self._moment = work, n, moment
        self.done = False

    def __await__(self) -> Generator[Any, None, Any]:
        error: BaseException | None = None
        for count in range(1, 1 << 30):
            try:
                waited = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as end:
                self.done = count <= self._n
                return end.value
            error = None
            if count == self._n and self._moment is Moment.WAITING:
                task = asyncio.current_task()
                assert task is not None
                injected[KIND] += 1
                task.cancel()
            try:
                yield waited
            except BaseException as failed:  # noqa: BLE001 - what it waits for failed, or somebody cancels it: its own affair
                error = failed
            if count == self._n and self._moment is Moment.ARRIVED and error is None:
                injected[KIND] += 1
                error = asyncio.CancelledError()


async def ends_before(work: Coroutine[Any, Any, Any], n: int, moment: Moment) -> bool:
    """Run `work` in a task and cancel it at its n-th await; whether it ended before that."""
    cancelled = CancelledAt(work, n, moment)

    async def run() -> None:
        await cancelled

    task = asyncio.create_task(run())
    try:
        await task
    except asyncio.CancelledError:
        ours = asyncio.current_task()
        if ours is not None and ours.cancelling():  # not it was cancelled, but we
            raise
        return False
    return cancelled.done
