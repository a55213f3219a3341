"""Old versions leave the engines, stay in the catalogue, say so when asked for, and come back by a rollback."""

import asyncio
import json

import httpx
import pytest

from app.domain.errors import CODES
from app.domain.retention import unloaded
from app.gateway.engine_lists import engine_list
from app.store.audit.audit import audit
from app.store.open import catalogue_at
from tests.support.gateway import OpenHouse, Running, form
from tests.support.waiting import until


async def push(running: Running, name: str, seed: int) -> str:
    answer = await running.http.post("/adapters", files=form(name, seed))
    assert answer.status_code == 201, answer.text
    return f"{name}@{answer.json()['digest'][:12]}"


async def chat(running: Running, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return await running.http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    ("numbers", "keep", "expected"), [((1, 2, 3), 2, {1}), ((3, 1, 2), 0, {1, 2, 3}), ((1,), 1, set()), ((), 0, set())]
)
def test_the_newest_are_kept(numbers: tuple[int, ...], keep: int, expected: set[int]) -> None:
    assert unloaded(numbers, keep) == expected


async def test_only_the_newest_versions_stay_in_the_engine_and_older_ones_say_so(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=2) as running:
        names = [await push(running, "bard", seed) for seed in range(5)]
        await push(running, "lone", 9)
        await until(lambda: len(running.simulator.loaded) == 4)
        assert {name for name in running.simulator.loaded if name.startswith("bard")} == set(names[2:])
        for number in (1, 2):
            answer = await chat(running, f"bard@{number}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "version_unloaded")
            assert "rollback" in answer.json()["error"]["message"]
            warm = await running.http.post("/adapters/bard/warm", params={"version": number})
            assert warm.json()["error"]["code"] == "version_unloaded"
        for model in ("bard", "bard@3", "bard@4", "bard@5", "lone", "lone@1"):
            assert (await chat(running, model)).status_code == 200
        listed = {card["id"] for card in (await running.http.get("/v1/models")).json()["data"]}
        assert {"bard@3", "bard@5"} <= listed
        assert not {"bard@1", "bard@2"} & listed
        versions = (await running.http.get("/adapters/bard")).json()["versions"]
        assert [(one["state"], one["unloaded"], one["model"]) for one in versions][-2:] == [("retired", True, None)] * 2
        assert not any(one["unloaded"] for one in versions[:3])
        artefact = running.data / "artefacts" / versions[-1]["digest"]
        assert artefact.is_dir()  # rollback needs it
        assert "version_unloaded" in CODES


async def test_requests_in_flight_finish_on_the_version_they_started_on(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=0) as running:
        first = await push(running, "bard", 1)
        running.simulator.faults["chat"] = "slow"
        body = {"model": "bard", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        asked = asyncio.create_task(running.http.post("/v1/chat/completions", json=body))
        await until(lambda: not running.gateway.context.routing_table.in_flight.idle(first))
        await push(running, "bard", 2)
        await asyncio.sleep(0.3)  # several passes
        assert first in running.simulator.loaded
        assert (await chat(running, "bard@1")).json()["error"]["code"] == "version_unloaded"
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: first not in running.simulator.loaded)


async def test_a_rollback_loads_and_probes_first_and_then_moves_the_name(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=1) as running:
        first, *_ = [await push(running, "bard", seed) for seed in range(4)]
        await until(lambda: first not in running.simulator.loaded)
        running.simulator.faults["load"] = "500"
        failed = await running.http.post("/adapters/bard/rollback", params={"to": 1})
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "load_failed")
        assert (await running.http.get("/adapters/bard")).json()["active_version"] == 4
        assert (await chat(running, "bard")).headers["x-adapter-version"] == "4"
        del running.simulator.faults["load"]
        running.simulator.broken_names.add(first)
        assert (await running.http.post("/adapters/bard/rollback", params={"to": 1})).status_code == 502
        running.simulator.broken_names.clear()
        await until(lambda: first not in running.simulator.loaded)
        loads = len(running.simulator.loads)
        back = await running.http.post("/adapters/bard/rollback", params={"to": 1})
        assert (back.status_code, back.json()["state"], back.json()["unloaded"]) == (200, "ready", False)
        assert first in running.simulator.loads[loads:]
        answer = await chat(running, "bard")
        assert (answer.status_code, answer.headers["x-adapter-version"]) == (200, "1")
        assert (await chat(running, "bard@3")).json()["error"]["code"] == "version_unloaded"
        assert (await chat(running, "bard@4")).status_code == 200


async def test_no_request_is_refused_while_the_name_moves_back(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=1) as running:
        for seed in range(4):
            await push(running, "bard", seed)
        seen: list[tuple[int, str]] = []

        async def ask() -> None:
            while len(seen) < 2 or seen[-1] != seen[-2] or seen[-1][1] != "1":
                answer = await chat(running, "bard")
                seen.append((answer.status_code, answer.headers.get("x-adapter-version", "")))

        asking = asyncio.create_task(ask())
        await running.http.post("/adapters/bard/rollback", params={"to": 1})
        async with asyncio.timeout(5):
            await asking
        assert {status for status, _ in seen} == {200}


async def test_the_engine_away_leaves_the_name_where_it_is(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=0) as running:
        for seed in range(3):
            await push(running, "bard", seed)
        await running.simulator.stop()
        answer = await running.http.post("/adapters/bard/rollback", params={"to": 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert (await running.http.get("/adapters/bard")).json()["active_version"] == 3


async def test_after_a_restart_the_same_are_kept_and_more_when_the_setting_grows(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=1) as running:
        names = [await push(running, "bard", seed) for seed in range(4)]
    running.simulator.loaded.clear()
    async with open_gateway(keep_versions=1) as running:
        await until(lambda: set(names[2:]) == running.simulator.loaded.keys())
        assert (await chat(running, "bard@1")).json()["error"]["code"] == "version_unloaded"
    async with open_gateway(keep_versions=3) as running:
        await until(lambda: set(names) == running.gateway.reconciler.loaded)  # listed is not yet probed
        assert (await chat(running, "bard@1")).status_code == 200


async def test_the_audit_expects_of_the_engine_what_is_kept(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=1) as running:
        for seed in range(4):
            await push(running, "bard", seed)
        await until(lambda: len(running.simulator.loaded) == 2)
        told = json.loads((running.data / "artefacts" / ".standing.json").read_text())
        assert told["keep_versions"] == 1
        findings = await audited(running)
        assert not [one for one in findings if one[0] == "I4"]
        listed = {**await engine_list(running.simulator.url)}
        listed.popitem()
        report = await asyncio.to_thread(audit, running.data, catalogue_at(running.data, None), listed=listed)
        assert [one.invariant for one in report.findings] == ["I4"]


async def audited(running: Running) -> list[tuple[str, str]]:
    listed = await engine_list(running.simulator.url)
    report = await asyncio.to_thread(audit, running.data, catalogue_at(running.data, None), listed=listed)
    return [(one.invariant, one.where) for one in report.findings]
