"""Roll-outs over everything but the engine: some requests first, then more, then all, or none."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.gateway import OpenHouse, Running, form
from tests.support.rolling_out import NAME, USERS, chat, push, put, user_of, version, versions
from tests.support.waiting import until

TRAFFIC = f"/adapters/{NAME}/traffic"


@pytest_asyncio.fixture
async def two(running: Running) -> AsyncIterator[Running]:
    """A gateway with two versions of one adapter, of which the second is active."""
    for seed in (1, 2):
        await push(running, seed)
    yield running


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_from_some_requests_to_all(two: Running) -> None:
    answer = await put(two, v1=75, v2=25)
    assert answer.status_code == 200, answer.text
    parts = [{"weight": 75, "version": 1}, {"weight": 25, "version": 2}]
    assert answer.json() == {
        "name": NAME,
        "stable_version": 1,
        "weights": {"1": 75, "2": 25},
        "shadow": None,
        "guard": False,
        "versions": [{**part, "shadow": False, "withheld": None} for part in parts],
    }
    shown = (await two.http.get(f"/adapters/{NAME}")).json()
    assert (await two.http.get(TRAFFIC)).json() == shown["traffic"] == answer.json()
    assert shown["active_version"] == 1
    found = await versions(two)
    assert found == await versions(two)  # each keeps its version
    assert found[1] > found[2] > 0
    assert await version(two, model=f"{NAME}@2") == 2
    assert (await put(two, v1=10, v2=90)).status_code == 200
    assert (await versions(two))[2] > USERS / 2
    promoted = await two.http.post(f"{TRAFFIC}/promote")
    assert (promoted.status_code, promoted.json()["version"], promoted.json()["active"]) == (200, 2, True)
    assert await versions(two) == {2: USERS}
    assert code(await two.http.get(TRAFFIC)) == (404, "no_traffic")
    assert "traffic" not in (await two.http.get(f"/adapters/{NAME}")).json()


@pytest.mark.parametrize("how", ["abort", "delete"])
async def test_and_back_to_none(two: Running, how: str) -> None:
    await put(two, v1=60, v2=40)
    if how == "abort":
        aborted = await two.http.post(f"{TRAFFIC}/abort")
        assert (aborted.status_code, aborted.json()["version"]) == (200, 1)
    else:
        assert (await two.http.delete(TRAFFIC)).status_code == 204
    assert await versions(two) == {1: USERS}
    assert code(await two.http.post(f"{TRAFFIC}/abort")) == (404, "no_traffic")
    assert code(await two.http.delete(TRAFFIC)) == (404, "no_traffic")
    assert code(await two.http.post(f"{TRAFFIC}/promote")) == (404, "no_traffic")


async def test_a_conversation_keeps_its_version(two: Running) -> None:
    await put(two, v1=50, v2=50)
    users = {number: user_of(two, number) for number in (1, 2)}
    for number, user in users.items():
        assert await version(two, user) == number
        messages = [{"role": "user", "content": "another matter"}]
        assert await version(two, user, messages=messages) == number
    opening = {"role": "user", "content": "how are you?"}
    more = [{"role": "assistant", "content": "well"}, {"role": "user", "content": "good"}]
    first = await version(two, messages=[opening])
    assert await version(two, messages=[opening, *more], temperature=0.5) == first


async def test_a_session_keeps_its_version(two: Running) -> None:
    await put(two, v1=50, v2=50)
    body = {"model": NAME, "prompt": "hello"}
    found = set()
    for number in range(USERS):
        headers = {"x-session-id": f"session {number}"}
        sent = [await two.http.post("/v1/completions", json={**body, "prompt": p}, headers=headers) for p in "ab"]
        (only,) = {one.headers["x-adapter-version"] for one in sent}
        found.add(only)
    assert found == {"1", "2"}


async def test_a_stream_goes_on_while_its_version_loses_its_requests(open_gateway: OpenHouse) -> None:
    """Nothing keeps old versions loaded here but the requests that they still answer."""
    async with open_gateway(keep_versions=0) as running:
        await push(running, 1)
        assert (await put(running, v1=100)).status_code == 200
        second = await push(running, 2)
        assert (await put(running, v1=50, v2=50)).status_code == 200
        engine_name = f"{NAME}@{second['digest'][:12]}"
        user = user_of(running, 2)
        running.simulator.faults["core"] = "hang"
        stream = asyncio.create_task(chat(running, user, stream=True))
        await until(lambda: running.simulator.running == 1)
        assert (await running.http.post(f"{TRAFFIC}/abort")).status_code == 200
        assert running.gateway.context.routing_table.resolve(NAME, conversation=f"user {user}".encode()).version == 1
        assert engine_name in running.simulator.loaded
        del running.simulator.faults["core"]
        answer = await stream
        assert answer.headers["x-adapter-version"] == "2"
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "error" not in answer.text
        await until(lambda: engine_name not in running.simulator.loaded)
        assert await version(running, user) == 1


async def test_a_new_version_waits_until_it_gets_a_weight(running: Running) -> None:
    await push(running, 1)
    assert (await put(running, v1=100)).status_code == 200
    new = await push(running, 2)
    assert (new["state"], new["active"], new["model"]) == ("retired", False, f"{NAME}@2")
    assert await versions(running) == {1: USERS}
    assert await version(running, model=f"{NAME}@2") == 2
    assert (await put(running, v1=50, v2=50)).status_code == 200
    assert set(await versions(running)) == {1, 2}


async def test_an_old_version_is_loaded_before_it_gets_requests(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_versions=0) as running:
        old = await push(running, 1)
        await push(running, 2)
        engine_name = f"{NAME}@{old['digest'][:12]}"
        await until(lambda: engine_name not in running.simulator.loaded)
        running.simulator.faults["load"] = "500"
        refused = await put(running, v1=50, v2=50)
        assert code(refused) == (502, "load_failed")
        assert code(await running.http.get(TRAFFIC)) == (404, "no_traffic")
        assert await versions(running) == {2: USERS}
        del running.simulator.faults["load"]
        assert (await put(running, v1=50, v2=50)).status_code == 200
        assert engine_name in running.simulator.loaded
        assert set(await versions(running)) == {1, 2}
        await running.http.post(f"{TRAFFIC}/promote")


async def test_a_roll_back_and_a_deletion_end_it(two: Running) -> None:
    await put(two, v1=50, v2=50)
    rolled = await two.http.post(f"/adapters/{NAME}/rollback", params={"to": 2})
    assert (rolled.status_code, rolled.json()["version"]) == (200, 2)
    assert await versions(two) == {2: USERS}
    assert code(await two.http.get(TRAFFIC)) == (404, "no_traffic")
    await put(two, v1=50, v2=50)
    assert (await two.http.delete(f"/adapters/{NAME}")).status_code == 204
    assert code(await two.http.get(TRAFFIC)) == (404, "adapter_not_found")
    assert code(await chat(two, "ann")) == (404, "model_not_found")


async def test_a_withheld_version_leaves_the_traffic_and_the_stable_one_gets_its_share(
    two: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(two, v1=60, v2=40)
    user = user_of(two, 2)
    follower = two.gateway.context.rollouts._follower
    check = follower._recheck.check
    monkeypatch.setattr(follower._recheck, "check", lambda *given: {**check(*given), (NAME, 2): "it failed"})
    await follower.refresh()
    assert await version(two, user) == 1
    assert await versions(two) == {1: USERS}
    shown = (await two.http.get(TRAFFIC)).json()["versions"][1]
    assert (shown["version"], shown["withheld"]) == (2, "it failed")
    for refused in (await put(two, v1=90, v2=10), await two.http.post(f"{TRAFFIC}/promote")):
        assert code(refused) == (409, "version_not_ready")
        assert "withheld: it failed" in refused.json()["error"]["message"]
    monkeypatch.undo()
    await follower.refresh()
    while (answer := await chat(two, user)).status_code == 503:  # it is being loaded again: never another version
        await asyncio.sleep(0)
    assert answer.headers["x-adapter-version"] == "2"


BAD: list[tuple[Any, int, str]] = [
    ({"1": 95, "2": 4}, 422, "bad_weights"),
    ({"1": 99.5, "2": 0.5}, 422, "bad_weights"),
    ({"1": "100"}, 422, "bad_weights"),
    ({"one": 100}, 422, "bad_weights"),
    ({"1": 100, "shadow": "2"}, 422, "bad_weights"),
    ({str(number): 10 for number in range(1, 11)}, 422, "bad_weights"),
    ({}, 422, "bad_weights"),
    ({"1": 95, "9": 5}, 404, "version_not_found"),
    ({"1": 100, "shadow": 9}, 404, "version_not_found"),
    ({"1": 95, "3": 5}, 409, "version_not_ready"),
    (b'{"1": 50, "1": 50}', 400, "invalid_request"),
    (b'{"1": NaN}', 400, "invalid_request"),
    (b"[100]", 400, "invalid_request"),
    (b'{"1": 100' + b" " * 2000 + b"}", 413, "request_too_large"),
]
"""Bodies, and what they are refused with. The engine refused version 3."""


@pytest.mark.hostile("R14")
@pytest.mark.parametrize(("body", "status", "name"), BAD, ids=[str(number) for number in range(len(BAD))])
async def test_a_bad_body_changes_nothing(open_gateway: OpenHouse, body: Any, status: int, name: str) -> None:
    async with open_gateway() as running:
        for seed in (1, 2):
            await push(running, seed)
        running.simulator.faults["load"] = "500"
        assert (await running.http.post("/adapters", files=form(NAME, 3))).status_code == 502
        del running.simulator.faults["load"]
        await put(running, v1=60, v2=40)
        before = (await running.http.get(TRAFFIC)).json()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        refused = await running.http.put(TRAFFIC, content=raw)
        assert code(refused) == (status, name), refused.text
        assert (await running.http.get(TRAFFIC)).json() == before


async def test_of_a_name_that_nobody_has(running: Running) -> None:
    assert code(await put(running, v1=100)) == (404, "adapter_not_found")
    for ask in (running.http.get, running.http.delete):
        assert code(await ask(TRAFFIC)) == (404, "adapter_not_found")
    for verb in ("promote", "abort"):
        assert code(await running.http.post(f"{TRAFFIC}/{verb}")) == (404, "adapter_not_found")
