"""Shadows and guards of roll-outs: copies cost nobody anything, and a version that does worse loses its requests."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain.shares import Resource
from app.serve import shadows
from app.serve.admission import NOBODY
from tests.support.gateway import OpenHouse, Running
from tests.support.rolling_out import NAME, USERS, chat, push, put, user_of, version, versions
from tests.support.waiting import until

TRAFFIC = f"/adapters/{NAME}/traffic"


@pytest_asyncio.fixture
async def two(running: Running) -> AsyncIterator[Running]:
    """A gateway with two versions of one adapter."""
    for seed in (1, 2):
        await push(running, seed)
    yield running


def asked(running: Running) -> Counter[str]:
    """Requests that the engine got, counted by version of the adapter, without probes."""
    catalogue = running.gateway.context.uploads.components.catalogue
    names = {row.engine_name: f"v{row.number}" for row in catalogue.versions(NAME)}
    sent = [one for one in running.simulator.seen if one.get("messages") == [{"role": "user", "content": "hello"}]]
    return Counter(names.get(one["model"], "") for one in sent)


def counted(running: Running, name: str, **labels: Any) -> float:
    metrics = running.gateway.context.metrics.registry.collector
    return metrics.get_sample_value(f"gateway_{name}", {key: str(value) for key, value in labels.items()}) or 0


def copies(running: Running, result: str = "ok") -> float:
    return counted(running, "rollout_requests_total", adapter=NAME, version=2, part="shadow", result=result)


def break_answers(running: Running, number: int) -> None:
    """The engine's answers of this version cannot be read from now on."""
    row = running.gateway.context.uploads.components.catalogue.version(NAME, number)
    assert row.engine_name is not None
    running.simulator.broken_names.add(row.engine_name)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_shadow_gets_a_copy_that_nobody_sees_or_pays(two: Running, stream: bool) -> None:
    assert (await put(two, v1=100, shadow=2)).status_code == 200
    answer = await chat(two, "ann", stream=stream)
    assert (answer.status_code, answer.headers["x-adapter-version"]) == (200, "1")
    await until(lambda: copies(two) == 1)
    assert asked(two) == {"v1": 1, "v2": 1}
    first, second = two.simulator.seen[-2:]
    assert first.get("cache_salt") != second.get("cache_salt")  # a version's prompts are cached apart
    assert {**first, "model": "", "cache_salt": ""} == {**second, "model": "", "cache_salt": ""}
    assert counted(two, "requests_total", adapter=NAME, status=200) == 1
    assert counted(two, "rollout_requests_total", adapter=NAME, version=1, part="live", result="ok") == 1
    assert counted(two, "rollout_completion_tokens_total", adapter=NAME, version=2, part="shadow") > 0
    usage = (await two.http.get("/usage")).json()["usage"]
    assert {(row["version"], row["requests"]) for row in usage} <= {(1, 1)}
    shares = two.gateway.context.shares
    assert shares.held(Resource.SEQUENCES, NOBODY) == 0


async def test_only_requests_for_the_plain_name_are_copied_and_only_if_another_answers(two: Running) -> None:
    await put(two, v1=60, v2=40, shadow=2)
    await chat(two, user_of(two, 2))
    await chat(two, model=f"{NAME}@1")
    await chat(two, model="served")
    await two.http.post("/tokenize", json={"model": NAME, "prompt": "hello", "user": user_of(two, 1)})
    await chat(two, user_of(two, 1))
    await until(lambda: copies(two) == 1)
    assert asked(two)["v2"] == 2  # its own, and one copy


async def test_a_shadow_that_fails_harms_nobody(two: Running) -> None:
    await put(two, v1=100, shadow=2)
    break_answers(two, 2)
    for _ in range(3):
        assert (await chat(two, "ann")).status_code == 200
    await until(lambda: copies(two, "failed") == 3)
    assert counted(two, "request_errors_total", adapter=NAME, code="upstream_failed") == 0


async def test_copies_are_bounded_and_dropped_while_the_engine_is_busy(
    two: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "MAX_SHADOWS", 1)
    await put(two, v1=100, shadow=2)
    two.simulator.faults["core"] = "hang"
    waiting = [asyncio.create_task(chat(two, "ann", stream=True)) for _ in range(3)]
    await until(lambda: counted(two, "rollout_shadows_dropped_total", reason="too_many") == 2)
    await until(lambda: two.simulator.running == 4)
    del two.simulator.faults["core"]
    assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}
    await until(lambda: copies(two) == 1)
    shares = two.gateway.context.shares
    with shares.take(Resource.SEQUENCES, "somebody", shares.limit(Resource.SEQUENCES) // 2):
        assert (await chat(two, "ann")).status_code == 200
    assert counted(two, "rollout_shadows_dropped_total", reason="busy") == 1
    assert copies(two) == 1


async def test_a_gateway_that_stops_gives_its_copies_up(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        for seed in (1, 2):
            await push(running, seed)
        await put(running, v1=100, shadow=2)
        running.simulator.faults["core"] = "hang"
        waiting = asyncio.create_task(chat(running, "ann", stream=True))
        await until(lambda: running.simulator.running == 2)
        waiting.cancel()
    del running.simulator.faults["core"]
    await until(lambda: running.simulator.running == 0)


async def test_a_guard_aborts_when_the_new_version_fails(two: Running) -> None:
    assert (await put(two, v1=60, v2=40, guard=True)).json()["guard"] is True
    old, new = user_of(two, 1), user_of(two, 2)
    for _ in range(20):
        assert await version(two, old) == 1
    break_answers(two, 2)
    failed = 0
    while (await two.http.get(TRAFFIC)).status_code == 200:
        failed += (await chat(two, new)).status_code == 502
        assert failed < 100
    assert failed >= 5
    assert await version(two, new) == 1
    await until(lambda: counted(two, "rollouts_ended_total", how="guard") == 1)


async def test_a_guard_aborts_when_the_shadow_fails_and_nobody_noticed(two: Running) -> None:
    await put(two, v1=100, shadow=2, guard=True)
    break_answers(two, 2)
    while (await two.http.get(TRAFFIC)).status_code == 200:
        assert await version(two, "ann") == 1
    await until(lambda: counted(two, "rollouts_ended_total", how="guard") == 1)


async def test_without_a_guard_it_goes_on_and_with_one_too_while_both_fail(two: Running) -> None:
    for guard in (False, True):
        await put(two, v1=60, v2=40, guard=guard)
        break_answers(two, 2)
        if guard:
            break_answers(two, 1)
        for user in (user_of(two, 1), user_of(two, 2)):
            for _ in range(10):
                await chat(two, user)
        for one in two.gateway.reconciler.each:
            await one.reconcile()
        assert (await two.http.get(TRAFFIC)).status_code == 200


async def test_a_guard_aborts_when_the_new_version_is_withheld(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(two, v1=60, v2=40, guard=True)
    follower = two.gateway.context.rollouts._follower
    check = follower._recheck.check
    monkeypatch.setattr(follower._recheck, "check", lambda *given: {**check(*given), (NAME, 2): "it failed"})
    await follower.refresh()
    async with asyncio.timeout(60):
        while (await two.http.get(TRAFFIC)).status_code == 200:
            await asyncio.sleep(0.01)
    monkeypatch.undo()
    await follower.refresh()
    assert await versions(two) == {1: USERS}
