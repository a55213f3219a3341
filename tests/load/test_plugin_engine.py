"""A whole gateway over simulated engines that fetch adapters by themselves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.server.settings import Settings
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.simulator import Simulator
from tests.support.waiting import STUCK_S


class Fetching(Simulator):
    """Asks its gateway what a name means, as the plugin does. asked: what it asked for."""

    def __init__(self, socket: Path) -> None:
        super().__init__(socket, SERVED)
        self.gateway: Running | None = None
        self.asked: list[str] = []
        self.resolver = self._fetch

    async def _fetch(self, name: str) -> str | None:
        assert self.gateway is not None
        self.asked.append(name)
        answer = await self.gateway.http.get(f"/resolve/{name}")
        return f"/cache/of/{self.socket.stem}/{answer.json()['digest']}" if answer.status_code == 200 else None


@asynccontextmanager
async def fleet(
    open_gateway: OpenHouse, root: Path, **overrides: Any
) -> AsyncIterator[tuple[Running, Fetching, Fetching]]:
    engines = Fetching(root / "1.sock"), Fetching(root / "2.sock")
    for engine in engines:
        await engine.start()
    urls = ",".join(engine.url for engine in engines)
    async with open_gateway(engine_url=urls, engine_resolves=True, **overrides) as running:
        for engine in engines:
            engine.gateway = running
        yield running, *engines
    for engine in engines:
        await engine.stop()


async def chat(running: Running, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    return int((await running.http.post("/v1/chat/completions", json=body)).status_code)


async def up(running: Running, count: int) -> None:
    async with asyncio.timeout(STUCK_S):
        while [one.engine_up for one in running.gateway.reconciler.each].count(True) != count:
            await asyncio.sleep(0.01)


async def test_nothing_is_loaded_and_a_new_version_is_tried_by_one_engine(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with fleet(open_gateway, tmp_path) as (running, one, two):
        await up(running, 2)
        pushed = await running.http.post("/adapters", files=form("bard"))
        assert (pushed.status_code, pushed.json()["state"]) == (201, "ready"), pushed.text
        assert len(one.asked + two.asked) == 1
        assert await chat(running, "bard") == 200
        assert one.loads + two.loads == []


async def test_an_engine_that_forgot_everything_serves_at_once_and_nobody_fills_it(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with fleet(open_gateway, tmp_path) as (running, one, two):
        await up(running, 2)
        for seed, name in enumerate(("bard", "clerk", "judge")):
            assert (await running.http.post("/adapters", files=form(name, seed))).status_code == 201
        await one.stop()
        await two.stop()
        await up(running, 0)
        await one.start()
        await up(running, 1)
        await asyncio.sleep(0.2)  # several passes
        assert one.loaded == {}
        assert [await chat(running, name) for name in ("bard", "clerk", "judge")] == [200, 200, 200]
        assert one.loads == []


async def test_a_version_that_no_engine_could_fetch_waits_and_one_whose_numbers_are_wrong_fails(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with fleet(open_gateway, tmp_path) as (running, one, two):
        await up(running, 2)
        fetch, one.resolver, two.resolver = one.resolver, None, None  # as if the gateway did not answer them
        pushed = await running.http.post("/adapters", files=form("bard"))
        assert pushed.json()["state"] == "stored", pushed.text
        assert await chat(running, "bard") == 404
        one.resolver = fetch
        async with asyncio.timeout(STUCK_S):
            while (await running.http.get("/adapters/bard")).json()["versions"][0]["state"] != "ready":
                await asyncio.sleep(0.05)
        assert await chat(running, "bard") == 200
        two.resolver = fetch
        one.faults["completions"] = two.faults["completions"] = "nan"
        refused = await running.http.post("/adapters", files=form("clerk", 1))
        assert refused.json()["error"]["code"] == "load_failed", refused.text


async def test_a_deleted_adapter_is_answered_no_more_and_its_artefact_goes(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with fleet(open_gateway, tmp_path) as (running, _one, _two):
        await up(running, 2)
        digest = (await running.http.post("/adapters", files=form("bard"))).json()["digest"]
        assert await chat(running, "bard") == 200
        assert (await running.http.delete("/adapters/bard")).status_code in (200, 204)
        assert await chat(running, f"bard@{digest[:12]}") == 404
        async with asyncio.timeout(10):  # engines keep copies of their own: what they list holds nothing here
            while (running.data / "artefacts" / digest).exists():
                await asyncio.sleep(0.05)


def test_an_embedded_engine_has_no_plugin(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "m", "reference": tmp_path, "open": True, "engine_resolves": True}
    with pytest.raises(ValidationError, match="engine_resolves is for the engines of engine_url"):
        Settings(**given)
