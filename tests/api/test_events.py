"""GET /adapters/{name}/events over the whole in-process gateway."""

import asyncio
import json
from typing import Any

import pytest

from app.domain.shares import SHARED, Resource
from tests.support.gateway import OpenHouse, Running, form

HAPPY = ["received", "validated", "screened", "stored", "ready"]


async def steps(running: Running, name: str, **query: Any) -> list[dict[str, Any]]:
    answer = await running.http.get(f"/adapters/{name}/events", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.startswith(": watching\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def states(found: list[dict[str, Any]]) -> list[str]:
    return [step["state"] for step in found]


async def test_who_watches_before_the_upload_sees_all_stages_and_the_end(running: Running) -> None:
    watching = asyncio.ensure_future(steps(running, "first", after=0))
    await asyncio.sleep(0.05)
    assert (await running.http.post("/adapters", files=form("first"))).status_code == 201
    found = await watching
    assert states(found) == HAPPY
    assert {(step["name"], step["version"]) for step in found} == {("first", 1)}
    seconds = [step["seconds"] for step in found]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)
    assert found[0]["outcome"] is None
    assert (found[-1]["outcome"], found[-1]["modules_total"]) == ("clean", 8)


async def test_who_comes_late_gets_the_past_of_the_current_version(running: Running) -> None:
    for seed in (0, 1):
        await running.http.post("/adapters", files=form("first", seed=seed))
    found = await steps(running, "first")
    assert states(found) == HAPPY
    assert {step["version"] for step in found} == {2}


async def test_a_refused_upload_ends_with_code_message_and_hint(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e6) as running:
        await running.http.post("/adapters", files=form("bad"))
        end = (await steps(running, "bad"))[-1]
    assert (end["state"], end["error"]["code"]) == ("rejected", "rejected")
    assert end["error"]["message"]
    assert "Read the report" in end["error"]["hint"]


async def test_a_version_that_waits_for_the_engine_is_followed_until_it_is_loaded(running: Running) -> None:
    await running.simulator.stop()
    assert (await running.http.post("/adapters", files=form("first"))).status_code == 202
    watching = asyncio.ensure_future(steps(running, "first"))
    await asyncio.sleep(0.2)
    assert not watching.done()
    await running.simulator.start()
    async with asyncio.timeout(10):
        assert states(await watching) == HAPPY


async def test_after_a_restart_the_catalogue_says_where_it_stands(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        await running.http.post("/adapters", files=form("first"))
    async with open_gateway() as running:
        found = await steps(running, "first")
    assert states(found) == ["ready"]
    assert found[0]["seconds"] is None


async def test_an_adapter_deleted_meanwhile_ends_the_stream(running: Running) -> None:
    await running.simulator.stop()
    await running.http.post("/adapters", files=form("first"))
    watching = asyncio.ensure_future(steps(running, "first"))
    await asyncio.sleep(0.1)
    assert (await running.http.delete("/adapters/first")).status_code == 204
    async with asyncio.timeout(5):
        assert states(await watching)[-1] == "deleted"
    assert (await running.http.get("/adapters/first/events")).status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/adapters/nobody/events", 404, "adapter_not_found"),
        ("/adapters/%1b%00/events", 404, "not_found"),  # the door takes no such path
        ("/adapters/a@b/events", 404, "adapter_not_found"),
        ("/adapters/a@b/events?after=0", 400, "bad_name"),
        ("/adapters/first/events?after=-1", 400, "bad_request"),
        ("/adapters/first/events?after=99999999999999999999", 400, "bad_request"),
    ],
)
async def test_what_cannot_be_watched_is_refused(running: Running, path: str, status: int, code: str) -> None:
    answer = await running.http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_the_stream_asks_for_a_key(running: Running) -> None:
    answer = await running.http.get("/adapters/first/events?after=0", headers={"authorization": "Bearer wrong"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")


async def test_too_many_watchers_are_refused_and_places_are_given_back(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    shares = running.gateway.context.shares
    for _ in range(3):
        await steps(running, "first")
    held = [shares.take(Resource.WATCHERS, "x") for _ in range(SHARED[Resource.WATCHERS].limit)]  # all are free again
    answer = await running.http.get("/adapters/first/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_followers")
    held[0].close()
    assert states(await steps(running, "first")) == HAPPY
