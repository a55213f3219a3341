"""POST /adapters/{name}/rescreen and POST /rescreen: kept uploads become versions by the policy in force."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.domain.names import AdapterName
from app.domain.version_state import IN_FLIGHT, State
from app.server.app import server_options
from tests.support.audited import rested
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.waiting import STUCK_S

LENIENT = {"tau": 1e9, "max_pruned_share": 1.0}
EMPTYING = {"tau": -1e9, "max_pruned_share": 1.0, "unscorable": "prune"}
REJECTING = {"max_update_ratio": 1e-9}


async def push(running: Running, name: str, seed: int = 0) -> dict[str, Any]:
    answer = await running.http.post("/adapters", files=form(name, seed))
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


async def rescreen(running: Running, name: str) -> tuple[int, dict[str, Any]]:
    answer = await running.http.post(f"/adapters/{name}/rescreen")
    return answer.status_code, answer.json()


async def shown(running: Running, name: str) -> dict[str, Any]:
    return dict((await running.http.get(f"/adapters/{name}")).json())


async def chat(running: Running, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return await running.http.post("/v1/chat/completions", json=body)


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        if block.startswith("event: "):
            kind, data = block.split("\n", 1)
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def counted(running: Running, result: str) -> float:
    value = running.gateway.context.metrics.registry.collector.get_sample_value(
        "gateway_rescreens_total", {"result": result}
    )
    assert value is not None
    return value


async def test_under_the_same_policy_there_is_nothing_to_make(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True) as running:
        first = await push(running, "style")
        status, same = await rescreen(running, "style")
        assert (status, same["version"], same["digest"]) == (200, 1, first["digest"])
        assert len((await shown(running, "style"))["versions"]) == 1
        assert counted(running, "unchanged") == 1


async def test_under_another_policy_the_same_bytes_become_the_next_version(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        before = await push(running, "style")
        assert before["outcome"] == "clean"
    async with open_gateway(keep_originals=True) as running:
        status, after = await rescreen(running, "style")
        assert status == 201
        assert (after["version"], after["active"], after["state"]) == (2, True, "ready")
        assert after["verdict_id"] != before["verdict_id"]
        assert after["report"]["received"] == before["report"]["received"]
        assert (await chat(running, "style")).headers["x-adapter-version"] == "2"
        watched = await running.http.get("/adapters/style/events")
        states = [fields["state"] for _, fields in events(watched.text)]
        assert states == ["received", "validated", "screened", "stored", "ready"]
        assert counted(running, "new") == 1
        assert (await rescreen(running, "style"))[0] == 200
        pushed = await running.http.post("/adapters", files=form("style"))
        assert (pushed.status_code, pushed.json()["version"]) == (200, 2)
        assert pushed.json()["digest"] == after["digest"]
        await rested(running)


async def test_what_a_policy_emptied_comes_back_under_another(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **EMPTYING) as running:
        assert (await push(running, "style"))["outcome"] == "emptied"
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        status, after = await rescreen(running, "style")
        assert (status, after["outcome"], after["active"]) == (201, "clean", True)
        answer = await chat(running, "style")
        assert (answer.status_code, answer.headers["x-adapter-digest"]) == (200, after["digest"])


async def test_what_does_not_pass_changes_nothing(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style")
        assert (await chat(running, "style")).status_code == 200
    async with open_gateway(keep_originals=True, **REJECTING) as running:
        await rested(running)  # what is withheld now has left the engine
        async with asyncio.timeout(STUCK_S):
            while running.simulator.loaded:
                await asyncio.sleep(0.02)
        before = await shown(running, "style")
        held = dict(running.simulator.loaded)
        for _ in range(2):  # the second time nothing is measured again
            answer = await running.http.post("/adapters/style/rescreen")
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "rejected")
            assert answer.json()["version"]["version"] == 2
        after = await shown(running, "style")
        assert after["active_version"] == before["active_version"] == 1
        assert [version["version"] for version in after["versions"]] == [2, 1]
        assert after["versions"][1] == before["versions"][0]
        assert running.simulator.loaded == held
        assert counted(running, "refused") == 2
        await rested(running)
    async with open_gateway(keep_originals=True, **LENIENT) as running:  # and the original is still there
        assert (await rescreen(running, "style"))[1]["version"] == 1
        async with asyncio.timeout(STUCK_S):
            while (answer := await chat(running, "style")).status_code == 503:  # the engine is being filled
                await asyncio.sleep(0.02)
        assert answer.headers["x-adapter-version"] == "1"


async def test_what_the_engine_refuses_changes_nothing(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **EMPTYING) as running:
        await push(running, "style")
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        running.simulator.faults["load"] = "500"
        status, answer = await rescreen(running, "style")
        assert (status, answer["error"]["code"]) == (502, "load_failed")
        running.simulator.faults.clear()
        assert (await shown(running, "style"))["active_version"] == 1
        assert (await chat(running, "style")).headers["x-adapter-version"] == "1"
        status, answer = await rescreen(running, "style")  # its cause has passed
        assert (status, answer["version"], answer["active"]) == (201, 2, True)
        assert (counted(running, "failed"), counted(running, "new")) == (0, 1)
        await rested(running)


async def test_what_was_not_kept_cannot_be_screened_again(open_gateway: OpenHouse) -> None:
    async with open_gateway(**LENIENT) as running:
        await push(running, "style")
        status, answer = await rescreen(running, "style")
        assert (status, answer["error"]["code"]) == (409, "original_not_kept")
        assert counted(running, "not_kept") == 1
        assert (await rescreen(running, "nobody"))[1]["error"]["code"] == "adapter_not_found"
        bad = form("bad") | {"config": ("c", b"{}")}
        await running.http.post("/adapters", files=bad)
        assert (await rescreen(running, "bad"))[1]["error"]["code"] == "version_not_ready"


async def test_an_original_that_was_changed_is_not_screened(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style")
        for path in (running.data / "originals").iterdir():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes() + b" ")
    async with open_gateway(keep_originals=True) as running:
        status, answer = await rescreen(running, "style")
        assert (status, answer["error"]["code"]) == (500, "store_failed")
        assert (await shown(running, "style"))["active_version"] == 1


async def test_the_newest_upload_is_not_undone_by_an_older_one(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style", 1)
    async with open_gateway(keep_originals=True) as running:
        rescreening = running.gateway.context.rescreening
        source = rescreening._source("style")  # chosen, and then an upload comes
        await push(running, "style", 2)
        rescreening._source = lambda _: source
        status, answer = await rescreen(running, "style")
        assert (status, answer["error"]["code"]) == (409, "version_not_ready")
        assert (await shown(running, "style"))["active_version"] == 2


async def test_after_a_rollback_what_the_name_means_is_screened_again(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        first = await push(running, "style", 1)
        await push(running, "style", 2)
        await running.http.post("/adapters/style/rollback")
    async with open_gateway(keep_originals=True) as running:
        _, after = await rescreen(running, "style")
        assert (after["version"], after["active"]) == (3, True)
        assert after["report"]["received"] == first["report"]["received"]


async def test_several_at_once_make_one_version(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style")
    async with open_gateway(keep_originals=True) as running:
        answers = await asyncio.gather(*(rescreen(running, "style") for _ in range(5)))
        assert sorted(status for status, _ in answers) == [200, 200, 200, 200, 201]
        assert {answer["version"] for _, answer in answers} == {2}


async def test_with_the_engine_away_it_is_stored_and_loaded_later(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style")
    async with open_gateway(keep_originals=True) as running:
        await running.simulator.stop()
        status, answer = await rescreen(running, "style")
        assert (status, answer["state"]) == (202, "stored")
        await running.simulator.start()
        async with asyncio.timeout(STUCK_S):
            while (await shown(running, "style"))["active_version"] != 2:
                await asyncio.sleep(0.02)


# ---- all of them -------------------------------------------------------------------------------------------------


async def test_all_are_screened_again_and_each_is_told(open_gateway: OpenHouse) -> None:
    async with open_gateway(**LENIENT) as running:
        await push(running, "unkept", 1)
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "a", 2)
        await push(running, "b", 3)
    async with open_gateway(keep_originals=True) as running:
        await push(running, "c", 4)
        answer = await running.http.post("/rescreen")
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events(answer.text)
        results = [(fields["name"], fields["result"]) for kind, fields in told if kind == "adapter"]
        assert results == [("a", "new"), ("b", "new"), ("c", "unchanged"), ("unkept", "not_kept")]
        assert told[0][1]["version"]["version"] == 2
        assert told[3][1]["error"]["code"] == "original_not_kept"
        assert told[-1] == ("done", {"new": 2, "unchanged": 1, "refused": 0, "not_kept": 1, "failed": 0})
        await rested(running)
    async with open_gateway(keep_originals=True, **REJECTING) as running:
        told = events((await running.http.post("/rescreen")).text)
        assert told[-1][1] == {"new": 0, "unchanged": 0, "refused": 3, "not_kept": 1, "failed": 0}
        assert told[0][1]["version"]["state"] == "rejected"


async def test_one_run_at_a_time_and_the_next_when_it_was_broken_off(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style")
        rescreening = running.gateway.context.rescreening
        run = rescreening.all()
        second = await running.http.post("/rescreen")
        assert (second.status_code, second.json()["error"]["code"]) == (429, "rescreening")
        assert second.headers["retry-after"]
        run.close()
        assert (await running.http.post("/rescreen")).status_code == 200
        run.close()  # late, and of no effect on others
        assert (await running.http.post("/rescreen")).status_code == 200


async def test_who_leaves_takes_no_file_from_under_the_screening(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style", 0)
    async with open_gateway(keep_originals=True, tau=3.5) as running:
        context = running.gateway.context
        components, begun, left = context.uploads.components, threading.Event(), threading.Event()

        def slow(*given: Any, **more: Any) -> Any:
            begun.set()
            assert left.wait(10)
            return components.sanitise(*given, **more)

        context.uploads.components = replace(components, sanitise=slow)
        work = asyncio.ensure_future(context.rescreening.one("style"))
        assert await asyncio.to_thread(begun.wait, 10)
        work.cancel()
        await asyncio.wait({work})
        left.set()
        async with asyncio.timeout(STUCK_S):
            while (row := components.catalogue.version(AdapterName("style"), 2)).state in IN_FLIGHT:
                await asyncio.sleep(0.01)
        assert (row.state, row.error_message) == (State.STORED, None)


async def test_a_run_cancelled_anywhere_leaves_things_in_order(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        for number in range(3):
            await push(running, f"style-{number}", number)
    for delay in (0.0, 0.01, 0.03, 0.1):
        async with open_gateway(keep_originals=True, tau=3.0 + delay) as running:
            work = asyncio.ensure_future(running.http.post("/rescreen"))
            await asyncio.sleep(delay)
            work.cancel()
            await asyncio.wait({work})
            async with asyncio.timeout(STUCK_S):
                while not await every_one_done(running, 3):  # one may still be at work, which ends by itself
                    await asyncio.sleep(0.01)
            await rested(running)


async def every_one_done(running: Running, count: int) -> bool:
    answer = await running.http.post("/rescreen")
    if answer.status_code == 429:
        return False
    done = events(answer.text)[-1][1]
    return bool(done["new"] + done["unchanged"] == count)


# ---- the command -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(running: Running) -> AsyncIterator[str]:
    """The gateway's address, on a port of its own."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        options = {**server_options(running.gateway), "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(running.app, **options))
        work = asyncio.create_task(server.serve([bound]))
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            await work


async def command(url: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "GATEWAY_URL": url, "GATEWAY_API_KEY": KEY, "COLUMNS": "200"}
    argv = [sys.executable, "-m", "app", "adapters", "rescreen", *args]
    root = Path(__file__).parents[2]
    return await asyncio.to_thread(subprocess.run, argv, cwd=root, env=env, capture_output=True, text=True)


async def test_the_command_tells_what_came_of_each(open_gateway: OpenHouse) -> None:
    async with open_gateway(**LENIENT) as running:
        await push(running, "unkept", 1)
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, "style", 2)
    async with open_gateway(keep_originals=True) as running, listening(running) as url:
        one = await command(url, "style")
        assert (one.returncode, one.stdout.split()[:2]) == (0, ["style@2", "ready"]), one.stderr
        every = await command(url, "--all")
        assert every.returncode == 1
        assert "style  unchanged  style@2  ready" in every.stdout
        assert "unkept  not kept  " in every.stdout
        assert "0 new, 1 unchanged, 0 refused, 1 not kept, 0 failed" in every.stdout
        missing = await command(url, "nobody")
        assert missing.returncode == 1
        assert "adapter_not_found" in missing.stderr
        neither = await command(url)
        assert neither.returncode == 2
        assert "--all" in neither.stderr


@pytest.mark.parametrize("path", ["/rescreen", "/adapters/style/rescreen"])
async def test_only_an_admin_may(open_gateway: OpenHouse, path: str) -> None:
    async with open_gateway() as running:
        answer = await running.http.post(path, headers={"Authorization": "Bearer nobody-knows-this-key"})
        assert answer.status_code == 401
