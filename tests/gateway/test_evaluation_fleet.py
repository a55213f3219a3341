"""Canaries with several engines: one of them tries the corrections, and every one holds what is served."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.load.fleet.fleet import Fleet
from app.load.reconcile import reconciler
from tests.support.canaries import ENERGIES, RUNGS, battery, energy_of, harmful_below
from tests.support.gateway import SERVED, Running, form, gateway
from tests.support.simulator import Says, Simulator
from tests.support.waiting import STUCK_S, until


@pytest_asyncio.fixture
async def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Simulator]]:
    monkeypatch.setattr(reconciler, "DOWN_S", 0.05)
    monkeypatch.setattr(reconciler, "BACKOFF_S", 0.05)
    made = [Simulator(tmp_path / f"{n}.sock", SERVED) for n in range(3)]
    async with AsyncExitStack() as stack:
        for engine in made:
            await engine.start()
            stack.push_async_callback(engine.stop)
        yield made


@pytest_asyncio.fixture
async def running(engines: list[Simulator], tiny_reference_dir: Path, tmp_path: Path) -> AsyncIterator[Running]:
    settings = {
        "engine_url": ",".join(engine.url for engine in engines),
        "canaries": battery(tmp_path / "battery.jsonl"),
        "rungs": RUNGS,
    }
    async with gateway(tmp_path / "data", tiny_reference_dir, engines[0], **settings) as made:
        fleet = made.gateway.engine
        assert isinstance(fleet, Fleet)
        await until(lambda: all(member.caught_up for member in fleet.members))
        yield made


def loads(engines: list[Simulator]) -> Counter[str]:
    """Engine name → number of engines that loaded it."""
    return Counter(name for engine in engines for name in set(engine.loads) if name.startswith("style@"))


async def test_one_engine_tries_and_all_hold_what_is_served(running: Running, engines: list[Simulator]) -> None:
    for engine in engines:
        engine.says = harmful_below(2)
    answer = await running.http.post("/adapters", files=form("style"))
    assert (answer.status_code, answer.json()["rung"]) == (201, 2), answer.text
    served = {f"style@{answer.json()['digest'].removeprefix('sha256:')[:12]}"}
    assert all(served <= engine.loaded.keys() for engine in engines), "before it is published"
    await until(lambda: all(set(engine.loaded) == served for engine in engines))
    counts = loads(engines)
    assert counts.pop(min(served)) == 3
    assert sorted(counts.values()) == [1, 3], (
        "the floor, which might have been served, and a rung that one engine tried"
    )


async def test_if_the_engine_that_tries_falls_another_one_tries(running: Running, engines: list[Simulator]) -> None:
    answers, fell, falling = harmful_below(2), list[Simulator](), list[asyncio.Task[None]]()

    def says(engine: Simulator) -> Says:
        def answer(path: str, body: Mapping[str, Any]) -> str:
            if not fell and path and energy_of(path) == ENERGIES[1]:
                fell.append(engine)
                falling.append(asyncio.create_task(engine.stop()))
            return str(answers(path, body))

        return answer

    for engine in engines:
        engine.says = says(engine)
    pushed = await running.http.post("/adapters", files=form("style"), params={"wait": False})
    assert pushed.status_code == 202, pushed.text
    async with asyncio.timeout(STUCK_S):
        while (shown := (await running.http.get("/adapters/style/versions/1")).json())["state"] != "ready":
            await asyncio.sleep(0.02)
    assert len(falling) == 1
    await falling[0]
    assert shown["rung"] == 2
