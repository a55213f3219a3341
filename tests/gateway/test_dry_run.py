"""`POST /screen?canaries=true`: the ladder of an upload that is given no name, and of which nothing stays."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.support.audited import rested
from tests.support.canaries import RUNGS, battery, harmful_below
from tests.support.gateway import OpenHouse, Running, form
from tests.support.waiting import STUCK_S


async def screen(running: Running, seed: int = 0) -> httpx.Response:
    return await running.http.post("/screen", params={"canaries": "true"}, files=form("style", seed))


async def nothing_is_left(running: Running) -> None:
    """Until neither the engine nor the store holds anything."""
    async with asyncio.timeout(STUCK_S):
        while running.simulator.loaded or [p for p in (running.data / "artefacts").iterdir() if p.name[0] != "."]:
            await asyncio.sleep(0.05)
    await rested(running)


@pytest.mark.parametrize("rung", [0, 2, None])
async def test_it_tells_the_rung_that_an_upload_would_be_served_at(
    open_gateway: OpenHouse, tmp_path: Path, rung: int | None
) -> None:
    async with open_gateway(canaries=battery(tmp_path / "battery.jsonl"), rungs=RUNGS, top_k=4) as running:
        running.simulator.says = harmful_below(9 if rung is None else rung)
        answer = await screen(running)
        assert answer.status_code == 200, answer.text
        assert answer.json()["behaviour"]["chosen"] == rung
        assert answer.json()["verdict"]["modules"]
        assert (await running.http.get("/adapters")).json()["adapters"] == []
        await nothing_is_left(running)
        assert 'result="rejected"} 0.0' in (await running.http.get("/metrics")).text, "no version was evaluated"


async def test_two_at_the_same_time_do_not_meet(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(canaries=battery(tmp_path / "battery.jsonl"), rungs=RUNGS, top_k=4) as running:
        running.simulator.says = harmful_below(1)
        answers = await asyncio.gather(screen(running), screen(running), screen(running, 1))
        assert [one.json()["behaviour"]["chosen"] for one in answers] == [1, 1, 1]
        await nothing_is_left(running)


async def test_a_client_that_goes_away_leaves_nothing(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(canaries=battery(tmp_path / "battery.jsonl"), rungs=RUNGS, top_k=4) as running:
        running.simulator.faults["chat"] = "hang"
        asking = asyncio.create_task(screen(running))
        async with asyncio.timeout(STUCK_S):
            while not running.simulator.running:
                await asyncio.sleep(0.01)
        asking.cancel()
        del running.simulator.faults["chat"]
        await nothing_is_left(running)


async def test_without_a_battery_it_is_refused(running: Running) -> None:
    answer = await screen(running)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "canaries")
    assert "GATEWAY_CANARIES" in answer.json()["error"]["message"]


async def test_with_the_engine_away_it_says_so_and_leaves_nothing(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(canaries=battery(tmp_path / "battery.jsonl"), rungs=RUNGS, top_k=4) as running:
        running.simulator.faults["chat"] = "reset"
        answer = await screen(running)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable"), answer.text
        del running.simulator.faults["chat"]
        await nothing_is_left(running)
