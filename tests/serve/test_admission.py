"""Requests hold their share of the engine until they have ended, wait briefly for it, and go before those who hold more."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from app.domain.api_keys import Role, new_key
from app.domain.errors import INVALID_REQUEST, SHARE_TAKEN, Refused
from app.domain.shares import Resource, Shares
from app.serve import admission as admission_module
from app.serve.admission import MAX_WAITING, Admission
from app.serve.request_load import Load
from tests.support.waiting import STUCK_S

KEYS = tuple(new_key(name, [Role.CHAT])[1] for name in ("greedy", "other", "third"))


class Engine:
    """Shares of eight sequences, and who holds some."""

    def __init__(self, keys: int = 3, limit: int = 8) -> None:
        self.shares = Shares(KEYS[:keys], {Resource.SEQUENCES: limit})
        self.admission = Admission(self.shares)
        self.held: list[ExitStack] = []

    async def admit(self, who: str, sequences: int = 1, schemas: int = 0) -> None:
        held = ExitStack()
        await self.admission.admit(who, Load(sequences, schemas=schemas), held)
        self.held.append(held)

    def end_one(self) -> None:
        self.held.pop().close()

    @property
    def waiting(self) -> int:
        return self.admission._waiting.total()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(STUCK_S):
        while not what():
            await asyncio.sleep(0)


@pytest.mark.hostile("P16")
async def test_one_key_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "WAIT_S", 0.0)
    engine = Engine()
    for _ in range(4):
        await engine.admit("greedy")
    with pytest.raises(Refused) as caught:
        await engine.admit("greedy", 2)
    assert caught.value.code is SHARE_TAKEN
    assert caught.value.code.retryable
    await engine.admit("other", 2)
    assert engine.shares.in_use(Resource.SEQUENCES) == 6


async def test_who_finds_none_free_waits_until_there_is_some() -> None:
    engine = Engine()
    await engine.admit("greedy", 4)
    await engine.admit("other", 2)
    waiting = asyncio.create_task(engine.admit("third", 2))
    await until(lambda: engine.waiting == 1)
    assert not waiting.done()
    engine.held[0].close()
    await waiting
    assert engine.shares.held(Resource.SEQUENCES, "third") == 2


@pytest.mark.hostile("P16")
async def test_who_holds_some_does_not_wait_before_others() -> None:
    engine = Engine()
    await engine.admit("greedy", 4)
    await engine.admit("other", 2)
    waiting = asyncio.create_task(engine.admit("third", 2))
    await until(lambda: engine.waiting == 1)
    with pytest.raises(Refused, match="share_taken"):
        await engine.admit("greedy", 4)
    engine.end_one()
    await waiting


async def test_a_client_that_leaves_while_it_waits_leaves_nothing() -> None:
    engine = Engine(limit=2)
    await engine.admit("greedy")
    waiting = asyncio.create_task(engine.admit("greedy"))
    await until(lambda: engine.waiting == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert engine.waiting == 0
    engine.end_one()
    assert all(engine.shares.in_use(resource) == 0 for resource in Resource)


async def test_only_so_many_of_one_caller_wait() -> None:
    engine = Engine(limit=2)
    await engine.admit("greedy")
    tasks = [asyncio.create_task(engine.admit("greedy")) for _ in range(MAX_WAITING)]
    await until(lambda: engine.waiting == MAX_WAITING)
    with pytest.raises(Refused, match="share_taken"):
        await engine.admit("greedy")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.hostile("P16")
async def test_more_than_one_caller_may_ever_hold_is_refused_for_good() -> None:
    engine = Engine(limit=8)
    with pytest.raises(Refused) as caught:
        await engine.admit("greedy", 5)
    assert caught.value.code is INVALID_REQUEST
    alone = Engine(keys=1)
    await alone.admit("greedy", 8)


@pytest.mark.hostile("P16")
async def test_a_schema_is_held_for_as_long_as_compiling_it_may_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon the request ends: others' tokens waited for the processor while it was compiled."""
    monkeypatch.setattr(admission_module, "WAIT_S", 0.0)
    monkeypatch.setattr(admission_module, "SCHEMA_UNIT_S", 1e-6)
    engine = Engine()
    await engine.admit("greedy", schemas=100_000)
    engine.end_one()
    assert engine.shares.held(Resource.SEQUENCES, "greedy") == 0
    with pytest.raises(Refused, match="share_taken"):
        await engine.admit("greedy", schemas=100_000)
    await until(lambda: engine.shares.held(Resource.SCHEMAS, "greedy") == 0)
    await engine.admit("greedy", schemas=100_000)
