"""Accounts of limits by themselves: what one process takes, draws, gives back and owes, in any order."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import Refused
from app.domain.tenant_limits import Flow
from app.gateway import tenant_account
from app.gateway.tenant_account import Account, BucketAccount, SlotAccount, Terms
from app.store.catalogue.limits import Draw, Drawn


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tenant_account, "time", made)
    return made


def account(limit: int, flow: Flow = Flow.REQUESTS, *, alone: bool = False) -> Any:
    kind = SlotAccount if flow is Flow.CONCURRENT else BucketAccount
    return kind(Terms("acme", flow, alone, lambda _: None, lambda *_: None), limit)


async def admitted(some: Account, amount: float = 1.0) -> bool:
    try:
        await some.take(amount)
    except Refused:
        return False
    return True


def draw(some: Account, *, sync: bool = False, got: float | None = None, left: float = 0.0) -> Draw | None:
    """Draw as the meter does; the catalogue grants `got`, or everything."""
    drawn = some.to_draw(sync=sync)
    if drawn is not None:
        waiters = some.waiters
        some.drew(Drawn(drawn.more if got is None else got, left))
        some.serve(waiters)
    return drawn


async def waiting(some: Account, amount: float = 1.0) -> "asyncio.Task[bool]":
    task = asyncio.create_task(admitted(some, amount))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("flow", [Flow.REQUESTS, Flow.TOKENS, Flow.CONCURRENT])
@pytest.mark.parametrize("alone", [False, True])
async def test_a_limit_of_zero_refuses_at_once(flow: Flow, alone: bool) -> None:
    assert not await admitted(account(0, flow, alone=alone))


async def test_a_request_is_served_by_what_another_put_back_meanwhile() -> None:
    some = account(1, Flow.CONCURRENT)
    first = await waiting(some)
    draw(some, got=1)
    assert await first
    second = await waiting(some)
    some.put_back(1)
    assert draw(some) is None, "nothing is to be drawn for it"
    assert await second


@pytest.mark.parametrize("flow", [Flow.REQUESTS, Flow.CONCURRENT])
async def test_a_caller_that_leaves_while_it_waits_takes_nothing(flow: Flow) -> None:
    some = account(1, flow)
    leaving = await waiting(some)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not some.waiters
    assert draw(some) is None
    served = await waiting(some)
    draw(some, got=1)
    assert await served
    refused = await waiting(some)
    draw(some, got=0)
    assert not await refused


async def test_a_caller_that_leaves_when_it_was_just_served_puts_back(clock: Clock) -> None:
    some = account(5)
    leaving = await waiting(some)
    draw(some, got=1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await admitted(some)


@pytest.mark.parametrize("alone", [False, True])
async def test_a_lowered_number_of_slots_is_in_force_for_requests_that_follow_each_other(alone: bool) -> None:
    some = account(5, Flow.CONCURRENT, alone=alone)
    tasks = [await waiting(some) for _ in range(5)]
    draw(some, got=5)
    assert all(await asyncio.gather(*tasks))
    some.relimit(2)
    running = 5
    for _ in range(20):
        some.put_back(1)
        running -= 1
        again = await waiting(some)
        draw(some, got=0, left=2 - running)
        running += await again
    assert running <= 2


async def test_alone_nothing_is_saved_up_beyond_the_limit(clock: Clock) -> None:
    some = account(1000, Flow.TOKENS, alone=True)
    assert await admitted(some, 900)
    assert not await admitted(some, 900), "100 are left, and stay"
    clock.now = 3600.0
    assert await admitted(some, 1000)
    assert not await admitted(some, 10)
    clock.now = 7200.0
    for _ in range(5):
        assert await admitted(some, 900)
        some.put_back(890)  # it used 10
    assert some.left == 950
    clock.now = 10_800.0
    assert some.left == 1000


async def test_slots_outlast_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_account, "DRAW_S", 0.01)
    some = account(3, Flow.CONCURRENT)
    for _ in range(10):  # more than the limit, one after another
        assert await admitted(some)
        some.put_back(1)
        if (drawn := some.to_draw(sync=True)) is not None:
            some.failed(drawn)
    assert all([await admitted(some) for _ in range(3)])
    assert not await admitted(some)
    drawn = draw(some, sync=True)
    assert drawn is not None
    assert drawn.keep == 3, "what runs is told when the catalogue is back"


async def test_what_was_used_during_an_outage_is_told_after_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_account, "DRAW_S", 0.01)
    some = account(10)
    assert sum([await admitted(some) for _ in range(12)]) == 10
    drawn = some.to_draw(sync=True)
    assert drawn is not None
    assert drawn.back == -10
    some.failed(drawn)
    again = draw(some, sync=True, left=-10.0)
    assert again is not None
    assert again.back == -10, "nobody knows whether it was told"
    assert some.left == 0
    assert draw(some, sync=True) is None, "once told, it is not told again"


async def test_a_surplus_is_given_back_and_a_debt_told(clock: Clock) -> None:
    some = account(100)
    task = await waiting(some, 10)
    first = draw(some)
    assert await task
    assert first == Draw("acme", Flow.REQUESTS, 15)
    assert draw(some, sync=True) is None, "a portion that was used is kept"
    second = draw(some, sync=True)
    assert second is not None
    assert second.back == 5
    some.put_back(-30)
    third = draw(some, sync=True)
    assert third is not None
    assert third.back == -30
    draw(some, sync=True)
    assert some.idle


@settings(max_examples=200)
@given(steps=st.lists(st.tuples(st.sampled_from(["take", "put", "draw", "sync"]), st.integers(1, 40)), max_size=40))
def test_whatever_happens_no_more_is_taken_than_was_granted(steps: list[tuple[str, int]]) -> None:
    """While the catalogue answers: what is taken, less what was put back, is what it granted, less what it got back."""

    async def run() -> None:
        some: BucketAccount = account(100)
        granted = taken = 0.0
        tasks: list[tuple[asyncio.Task[bool], int]] = []
        for step, amount in steps:
            if step == "take":
                tasks.append((await waiting(some, amount), amount))
            elif step == "put" and taken >= amount:
                some.put_back(amount)
                taken -= amount
            elif step in ("draw", "sync"):
                found = draw(some, sync=step == "sync", got=float(amount) if amount % 2 else None)
                if found is not None:
                    granted += (float(amount) if amount % 2 else found.more) - found.back
            await asyncio.sleep(0)
            for task, wanted in [one for one in tasks if one[0].done()]:
                taken += wanted if task.result() else 0
                tasks.remove((task, wanted))
            assert taken <= granted + 1e-6
        for task, _ in tasks:
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)

    asyncio.run(run())
