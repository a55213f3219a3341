"""Progress: bounded, in order, and for whoever watches from whenever."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from app.domain.version_state import State
from app.observe import upload_progress as module
from app.observe.upload_progress import MAX_VERSIONS, Progress


@dataclass(frozen=True)
class Version:
    name: str
    number: int
    state: State
    outcome: str | None = None
    modules_total: int | None = None
    modules_pruned: int | None = None
    modules_projected: int | None = None
    error_code: str | None = None
    error_message: str | None = None


def tell(progress: Progress, number: int, *states: State, name: str = "a") -> None:
    for state in states:
        progress.report(Version(name, number, state))


async def watch(progress: Progress, name: str = "a", after: int = 0) -> list[Any]:
    follower = progress.follower()
    try:
        async with asyncio.timeout(5):
            return [step and (step.version, step.state.value) async for step in follower.steps(name, after)]
    finally:
        follower.close()


async def test_who_watches_from_the_start_sees_every_step_told_by_a_thread() -> None:
    progress = Progress()
    watching = asyncio.ensure_future(watch(progress))
    await asyncio.sleep(0)
    states = (State.RECEIVED, State.VALIDATED, State.SCREENED, State.STORED, State.READY)
    thread = threading.Thread(target=tell, args=(progress, 1, *states))
    thread.start()
    assert await watching == [(1, state.value) for state in states]
    thread.join()


async def test_who_comes_late_gets_the_past_of_the_newest_version() -> None:
    progress = Progress()
    tell(progress, 1, State.RECEIVED, State.REJECTED)
    tell(progress, 2, State.RECEIVED, State.VALIDATED, State.REJECTED)
    assert await watch(progress) == [(2, "received"), (2, "validated"), (2, "rejected")]


async def test_after_a_number_only_what_is_newer_counts() -> None:
    progress = Progress()
    tell(progress, 3, State.RECEIVED, State.REJECTED)
    watching = asyncio.ensure_future(watch(progress, after=3))
    await asyncio.sleep(0.05)
    assert not watching.done()
    tell(progress, 4, State.RECEIVED, State.FAILED)
    assert await watching == [(4, "received"), (4, "failed")]


async def test_steps_told_late_or_twice_are_no_news() -> None:
    progress = Progress()
    tell(progress, 1, State.RECEIVED, State.SCREENED, State.VALIDATED, State.SCREENED, State.READY, State.STORED)
    assert await watch(progress) == [(1, "received"), (1, "screened"), (1, "ready")]


async def test_a_deleted_version_ends_its_watch_and_is_not_found_by_the_next() -> None:
    progress = Progress()
    tell(progress, 1, State.RECEIVED)
    watching = asyncio.ensure_future(watch(progress))
    await asyncio.sleep(0)
    tell(progress, 1, State.DELETED)
    assert await watching == [(1, "received"), (1, "deleted")]
    assert progress.newest("a", 0) is None


async def test_memory_is_bounded_whatever_is_told() -> None:
    progress = Progress()
    for number in range(1, MAX_VERSIONS + 100):
        tell(progress, number, State.RECEIVED, State.READY, name=f"n{number}")
    assert progress.newest("n1", 0) is None
    assert progress.newest(f"n{MAX_VERSIONS}", 0) == MAX_VERSIONS
    assert len(progress._steps) == len(progress._started) == MAX_VERSIONS


async def test_silence_is_told_and_a_watch_ends_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(module, "MAX_FOLLOW_S", 0.1)
    progress = Progress()
    tell(progress, 1, State.RECEIVED)
    seen = await watch(progress)
    assert seen[0] == (1, "received")
    assert 2 <= seen.count(None) <= 6
