"""Bounded thread pools: their width, their end, and what an error leaves behind."""

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import fields

import pytest

from app.concurrency import pools
from app.concurrency.pools import Pool, Pools
from tests.support.waiting import STUCK_S


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool("kind", 2)
    yield made
    made.close(wait=True)


async def test_work_runs_in_a_named_thread_with_the_callers_context(pool: Pool) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    request.set("r-1")

    def work(number: int, *, more: int) -> tuple[str, str, int]:
        return threading.current_thread().name, request.get(), number + more

    assert await pool(work, 1, more=2) == ("kind_0", "r-1", 3)


async def test_no_more_threads_than_its_width(pool: Pool) -> None:
    go_on, at_work, most, lock = threading.Event(), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        assert go_on.wait(30)
        with lock:
            at_work -= 1

    running = [pool.start(work) for _ in range(6)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*running)
    assert 1 <= most <= 2


async def test_work_to_the_end_is_waited_for_however_often_its_caller_is_cancelled(pool: Pool) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(30)
        ended.set()

    task = asyncio.ensure_future(pool.to_the_end(work))
    assert await asyncio.to_thread(begun.wait, 30)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


class Heavy:
    """An object that tells which thread freed it."""

    freed_in: list[int]

    def __init__(self, freed_in: list[int]) -> None:
        self.freed_in = freed_in

    def __del__(self) -> None:
        self.freed_in.append(threading.get_ident())


async def test_an_error_leaves_the_variables_of_its_frames_in_the_thread(pool: Pool) -> None:
    """An artefact of gigabytes that could not be written was freed where the error was forgotten: on the event loop."""
    freed_in: list[int] = []

    def inner() -> None:
        heavy = Heavy(freed_in)
        raise KeyError(id(heavy))

    def outer() -> None:
        other = Heavy(freed_in)
        try:
            inner()
        except KeyError as error:
            raise ValueError(id(other)) from error

    with pytest.raises(ValueError, match=r"\d+") as caught:
        await pool(outer)
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(freed_in) == 2
    del caught
    gc.collect()
    assert threading.get_ident() not in freed_in


async def test_closing_drops_what_waits_and_waits_for_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    every, go_on, begun, done = Pools.for_uploads(1), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        assert go_on.wait(30)
        done.append("ran")

    running = every.background.start(work)
    waiting = every.background.start(done.append, "waited")  # its one thread is taken
    assert begun.wait(30)
    monkeypatch.setattr(pools, "STOP_S", 0.05)
    every.close()  # does not wait for ever
    assert not done
    monkeypatch.setattr(pools, "STOP_S", 30)
    threading.Timer(0.05, go_on.set).start()
    every.close()
    assert done == ["ran"]
    with pytest.raises(RuntimeError):
        every.store.start(time.time)
    await running
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_what_is_large_is_freed_in_a_thread_and_after_the_end_at_once() -> None:
    pool, threads = Pool("kind", 1), list[int]()

    def release() -> None:
        threads.append(threading.get_ident())

    await pool.free(release)
    pool.close(wait=True)
    await pool.free(release)
    assert threads[0] != threading.get_ident()
    assert threads[1:] == [threading.get_ident()]


def test_pools_are_bounded_and_named_after_their_work() -> None:
    every = Pools.for_uploads(7)
    assert {field.name: getattr(every, field.name).name for field in fields(every)} == {
        field.name: field.name for field in fields(every)
    }
    assert every.screening.threads >= 8  # every upload, and a rescreening
    assert sum(getattr(every, field.name).threads for field in fields(every)) < 64
    every.close()


async def test_an_error_that_is_raised_again_ends_no_coroutine_that_it_passed_before(pool: Pool) -> None:
    error, go_on = ValueError("always the same one"), asyncio.Event()

    def work() -> None:
        raise error

    async def wait() -> str:
        try:
            await pool(work)
        except ValueError:
            await go_on.wait()
        return "went on"

    waiting = asyncio.create_task(wait())
    while error.__traceback__ is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # it waits for the event, and its frame is in the error's traceback
    with pytest.raises(ValueError, match="always"):
        await pool(work)
    go_on.set()
    async with asyncio.timeout(STUCK_S):
        assert await waiting == "went on"
