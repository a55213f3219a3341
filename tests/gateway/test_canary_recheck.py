"""Published versions asked again: after the battery changed, at intervals, and never held against them what others did."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.gateway import canary_recheck
from app.observe.log import FIELDS
from app.server import signals
from app.store.audit.audit import Promise
from tests.support.audited import rested
from tests.support.canaries import HARM, REFUSAL, RUNGS, battery, harmful_below
from tests.support.gateway import OpenHouse, Running, form
from tests.support.waiting import STUCK_S


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses are for the engine's sake."""
    monkeypatch.setattr(canary_recheck, "LOOK_S", 0.05)
    monkeypatch.setattr(canary_recheck, "PAUSE_S", 0.0)
    monkeypatch.setattr(canary_recheck, "RETRY_S", 0.1)
    monkeypatch.setattr(signals, "in_terminal", lambda: False)  # of a service


def given(tmp_path: Path, number: int = 16, **also: Any) -> dict[str, Any]:
    return {"canaries": battery(tmp_path / "battery.jsonl", number), "rungs": RUNGS, "top_k": 4, **also}


async def push(running: Running, name: str = "style", seed: int = 0) -> httpx.Response:
    return await running.http.post("/adapters", files=form(name, seed))


async def chat(running: Running, model: str = "style") -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


async def version(running: Running, name: str = "style", number: int = 1) -> dict[str, Any]:
    return dict((await running.http.get(f"/adapters/{name}/versions/{number}")).json())


async def metric(running: Running, line: str) -> bool:
    return line in (await running.http.get("/metrics")).text.splitlines()


async def until_served(running: Running, model: str = "style") -> None:
    """Until a gateway that was just started knows that the engine holds it."""
    async with asyncio.timeout(STUCK_S):
        while await chat(running, model) != 200:
            await asyncio.sleep(0.05)


async def until_asked_again(running: Running, passed: bool, name: str = "style", number: int = 1) -> dict[str, Any]:
    """Until the version was asked again with this result, and that is in force."""
    async with asyncio.timeout(STUCK_S):
        while True:
            found = await version(running, name, number)
            again = found["report"].get("asked_again", {})
            if again.get("passed") is passed and (found["withheld"] is None) is passed:
                return found
            await asyncio.sleep(0.05)


async def test_after_a_restart_with_another_battery_what_is_served_is_asked_it(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway(**given(tmp_path)) as running:
        running.simulator.says = harmful_below(0)
        assert (await push(running)).status_code == 201
    async with open_gateway(**given(tmp_path, number=20)) as running:
        found = await until_asked_again(running, passed=True)
        assert sum(one["asked"] for one in found["report"]["asked_again"]["asked"]) == 20
        assert (
            found["report"]["asked_again"]["evaluation"]
            == running.gateway.context.uploads.components.rules.operators.evaluation
        )
        assert await chat(running) == 200
        assert await metric(running, 'gateway_canary_rechecks_total{result="passed"} 1.0')
        await rested(running, [Promise("style", 1)])
    asked = len(running.simulator.seen)
    async with open_gateway(**given(tmp_path, number=20)) as running:
        await until_served(running)
        await rested(running, [Promise("style", 1)])
        assert len(running.simulator.seen) < asked + 20, "it has passed this battery"


async def test_one_that_fails_is_withheld_and_the_version_before_can_be_rolled_back_to(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway(**given(tmp_path)) as running:
        running.simulator.says = harmful_below(0)
        for seed in (0, 1):
            assert (await push(running, seed=seed)).status_code == 201
        second = await engine_name(running, 2)
        assert second in running.simulator.loaded

    def harmful_second(path: str, body: Mapping[str, Any]) -> str:
        fails = body["model"] == second and body["messages"][-1]["content"] == "canary 17"
        return HARM if fails else REFUSAL

    async with open_gateway(**given(tmp_path, number=20)) as running:
        running.simulator.says = harmful_second
        found = await until_asked_again(running, passed=False, number=2)
        assert "asked again, it failed canaries" in found["withheld"]
        assert await until_asked_again(running, passed=True, number=1)
        assert await chat(running) != 200, "not silently answered by another version or the served model"
        assert await metric(running, "gateway_versions_withheld 1.0")
        await rested(running, [Promise("style", 1), Promise("style", 2)])
        await until_served(running, "style@1")
        assert (await running.http.post("/adapters/style/rollback")).status_code == 200
        assert await chat(running) == 200
        back = await running.http.post("/adapters/style/rollback", params={"to": 2})
        assert (back.status_code, back.json()["error"]["code"]) == (409, "version_not_ready")
        await rested(running, [Promise("style", 1), Promise("style", 2)])
    async with open_gateway(**given(tmp_path, number=20)) as running:  # the engine was mended
        running.simulator.says = harmful_below(0)
        await until_asked_again(running, passed=True, number=2)
        await until_served(running, "style@2")
        await rested(running, [Promise("style", 1), Promise("style", 2)])


async def engine_name(running: Running, number: int) -> str:
    digest = (await version(running, number=number))["digest"].removeprefix("sha256:")
    return f"style@{digest[:12]}"


async def test_one_answer_that_differs_once_withholds_nothing(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(**given(tmp_path)) as running:
        running.simulator.says = harmful_below(0)
        assert (await push(running)).status_code == 201
    slips = iter([True])

    def slips_once(path: str, body: Mapping[str, Any]) -> str:
        return HARM if path and body["messages"][-1]["content"] == "canary 3" and next(slips, False) else REFUSAL

    async with open_gateway(**given(tmp_path, number=20)) as running:
        running.simulator.says = slips_once
        await until_asked_again(running, passed=True)
        assert next(slips, None) is None, "it was asked and it slipped"
        assert await chat(running) == 200


async def test_an_engine_that_went_wrong_is_not_held_against_its_adapters(
    open_gateway: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_gateway(**given(tmp_path, canary_recheck_seconds=0.3)) as running:
        running.simulator.says = harmful_below(0)
        assert (await push(running)).status_code == 201
        await until_asked_again(running, passed=True)
        running.simulator.says = lambda *_: HARM  # the served model, too
        async with asyncio.timeout(STUCK_S):
            while "served_model_changed" not in caplog.text:
                await asyncio.sleep(0.05)
        assert (await version(running))["withheld"] is None
        running.simulator.says = harmful_below(9)  # now the adapter alone
        await until_asked_again(running, passed=False)
        running.simulator.says = harmful_below(0)
        await until_asked_again(running, passed=True)
        assert await chat(running) == 200
        await rested(running, [Promise("style", 1)])


@pytest.mark.parametrize("everybody", [False, True], ids=["the adapter", "the served model, too"])
async def test_a_version_that_cannot_be_asked_stays_served_and_is_asked_later(
    open_gateway: OpenHouse, tmp_path: Path, everybody: bool
) -> None:
    async with open_gateway(**given(tmp_path)) as running:
        running.simulator.says = harmful_below(0)
        assert (await push(running)).status_code == 201
    tried = asyncio.Event()

    def breaks(path: str, body: Mapping[str, Any]) -> str:
        if (path or everybody) and body["messages"][-1]["content"].startswith("canary"):
            tried.set()
            raise RuntimeError  # the simulator answers 500
        return REFUSAL

    async with open_gateway(**given(tmp_path, number=20)) as running:
        running.simulator.says = breaks
        await asyncio.wait_for(tried.wait(), STUCK_S)
        await until_served(running)
        assert (await version(running))["withheld"] is None
        running.simulator.says = harmful_below(0)
        await until_asked_again(running, passed=True)


async def test_on_sighup_a_new_battery_is_in_force_and_a_faulty_one_is_not(
    open_gateway: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_gateway(**given(tmp_path)) as running:
        running.simulator.says = harmful_below(0)
        assert (await push(running)).status_code == 201
        before = (await running.http.get("/ready")).json()["details"]["behaviour"]
        (tmp_path / "battery.jsonl").write_bytes(b"{}")
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(STUCK_S):
            while "canaries_not_reloaded" not in caplog.text:
                await asyncio.sleep(0.05)
        (told,) = (record for record in caplog.records if record.message == "canaries_not_reloaded")
        assert "line 1" in str(getattr(told, FIELDS))
        assert (await running.http.get("/ready")).json()["details"]["behaviour"] == before
        battery(tmp_path / "battery.jsonl", 20)
        os.kill(os.getpid(), signal.SIGHUP)
        await until_asked_again(running, passed=True)
        assert "asked 24 canaries" in (await running.http.get("/ready")).json()["details"]["behaviour"]
        assert (await push(running)).status_code == 201, "the same bytes under another battery are a new version"
        assert (await version(running, number=2))["rung"] == 0
        await rested(running, [Promise("style", 1), Promise("style", 2)])


async def test_a_gateway_without_a_battery_says_so_on_sighup(
    open_gateway: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_gateway() as running:
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(STUCK_S):
            while "canaries_not_reloaded" not in caplog.text:
                await asyncio.sleep(0.05)
        assert (await running.http.get("/health")).status_code == 200
