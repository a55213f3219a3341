"""A core that hangs behind a server that says it is well: found by its silence; and a busy one is not taken for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio

from app.load.client.engine import Engine
from app.load.fleet.fleet import Fleet
from app.load.reconcile import hung as hung_module
from app.load.reconcile.hung import HungWatch
from app.load.reconcile.pulse import Pulse
from tests.support.gateway import SERVED, OpenHouse, Running, form, gateway
from tests.support.simulator import Simulator
from tests.support.waiting import STUCK_S, until

SILENT_S = 0.3


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hung_module, "LOOK_S", 0.05)
    monkeypatch.setattr(hung_module, "AGAIN_S", 0.05)
    monkeypatch.setattr(hung_module, "PROBE_S", 0.2)


@pytest_asyncio.fixture
async def watched(open_gateway: OpenHouse) -> AsyncIterator[Running]:
    """A gateway that soon suspects its engine, and one adapter."""
    async with open_gateway(engine_silent_seconds=SILENT_S) as running:
        assert (await running.http.post("/adapters", files=form("style"))).status_code == 201
        yield running


@contextmanager
def core(engine: Simulator, fault: str = "hang") -> Iterator[None]:
    engine.faults["core"] = fault
    try:
        yield
    finally:
        del engine.faults["core"]


async def chat(running: Running, model: str = "style", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    return await running.http.post("/v1/chat/completions", json=body)


def asking(running: Running, model: str = "style", **more: Any) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(chat(running, model, **more))


async def found(running: Running) -> None:
    await until(lambda: not running.gateway.reconciler.engine_up)


async def back(running: Running) -> None:
    await until(lambda: running.gateway.reconciler.engine_up)


def probes(engine: Simulator) -> int:
    """Times the served model was asked for one token."""
    return sum(body.get("prompt") is not None and body["model"] == SERVED for body in engine.seen)


async def test_new_requests_are_refused_at_once_and_those_that_wait_are_left_waiting(watched: Running) -> None:
    loads = len(watched.simulator.loads)
    with core(watched.simulator):
        waiting = [asking(watched), asking(watched, SERVED)]
        await found(watched)
        for model in ("style", SERVED):
            began = time.monotonic()
            answer = await chat(watched, model)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert time.monotonic() - began < 2
        ready = await watched.http.get("/ready")
        assert ready.status_code == 503
        assert "gateway_engine_up 0.0" in (await watched.http.get("/metrics")).text
        assert not any(task.done() for task in waiting)
    assert {(await task).status_code for task in waiting} == {200}
    await back(watched)
    assert (await chat(watched)).status_code == 200
    assert len(watched.simulator.loads) == loads, "it had forgotten nothing"


async def test_nor_does_anybody_have_to_wait_for_it_to_come_back(watched: Running) -> None:
    with core(watched.simulator):
        waiting = asking(watched)
        await found(watched)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(2 * SILENT_S)
        assert (await chat(watched)).status_code == 503
    await back(watched)
    assert (await chat(watched)).status_code == 200


async def test_a_stream_that_stops_in_its_midst_tells_too(watched: Running) -> None:
    watched.simulator.faults["chat"] = "slow"
    stream = asking(watched, stream=True)
    await until(lambda: watched.simulator.chunks > 3)
    with core(watched.simulator):
        await found(watched)
        assert not stream.done()
    written = watched.simulator.chunks
    await back(watched)
    await until(lambda: watched.simulator.chunks > written + 3)
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)


async def test_a_streams_head_comes_from_the_server_and_tells_nothing(watched: Running) -> None:
    with core(watched.simulator):
        streams = []
        while watched.gateway.reconciler.engine_up:
            streams.append(asking(watched, stream=True))
            await asyncio.sleep(0.05)
            assert len(streams) < 100
    assert {(await stream).status_code for stream in streams} <= {200, 503}


async def test_what_the_server_refuses_by_itself_does_not_hide_it(watched: Running) -> None:
    with core(watched.simulator):
        waiting = asking(watched)
        async with asyncio.timeout(STUCK_S):
            while watched.gateway.reconciler.engine_up:
                assert (await chat(watched, max_tokens=100_000)).status_code in (400, 503)
                await asyncio.sleep(SILENT_S / 10)
    assert (await waiting).status_code == 200


async def test_clients_that_lose_patience_early_do_not_hide_it(watched: Running) -> None:
    async with asyncio.timeout(5):
        with core(watched.simulator):
            while watched.gateway.reconciler.engine_up:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SILENT_S / 4):
                        await chat(watched)
    await back(watched)


async def test_uploads_do_not_wait_for_it(watched: Running) -> None:
    with core(watched.simulator):
        waiting = asking(watched)
        await found(watched)
        began = time.monotonic()
        answer = await watched.http.post("/adapters", files=form("late", seed=1))
        assert (answer.status_code, answer.json()["state"]) == (202, "stored")
        assert time.monotonic() - began < 5
    await waiting
    async with asyncio.timeout(STUCK_S):
        while (await watched.http.get("/adapters/late")).json()["active_version"] != 1:
            await asyncio.sleep(0.02)


async def test_who_answers_others_is_busy(watched: Running) -> None:
    """One request waits for ever; another's tokens come: no suspicion, and nothing is asked."""
    watched.simulator.faults["metrics"] = "500"
    watched.simulator.faults["chat"] = "slow"
    stream = asking(watched, stream=True)
    watched.simulator.faults["completions"] = "hang"
    body = {"model": "style", "prompt": "x"}
    waiting = asyncio.create_task(watched.http.post("/v1/completions", json=body))
    asked = probes(watched.simulator)
    for _ in range(50):
        await asyncio.sleep(SILENT_S / 10)
        assert watched.gateway.reconciler.engine_up
    assert probes(watched.simulator) == asked
    for task in (stream, waiting):
        task.cancel()
    await asyncio.gather(stream, waiting, return_exceptions=True)


async def test_who_reads_a_long_prompt_is_busy(watched: Running) -> None:
    with core(watched.simulator, "prefill"):
        waiting = asking(watched)
        for _ in range(30):
            await asyncio.sleep(SILENT_S / 10)
            assert watched.gateway.reconciler.engine_up
        assert not waiting.done()
        assert probes(watched.simulator) == 0
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("fault", ["500", "silent"])
async def test_one_whose_metrics_tell_nothing_may_be_busy_for_as_long_as_an_answer_may_take(
    watched: Running, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its batch is full of answers that are not streamed, and the one token would wait behind them."""
    watched.simulator.faults["metrics"] = fault
    with core(watched.simulator):
        waiting = asking(watched)
        for _ in range(30):
            await asyncio.sleep(SILENT_S / 10)
            assert watched.gateway.reconciler.engine_up
        assert probes(watched.simulator) == 0
        monkeypatch.setattr(hung_module, "SILENCE_S", 2 * SILENT_S)
        await found(watched)
        watched.simulator.faults["metrics"] = "500"
        await asyncio.sleep(SILENT_S)
        assert not watched.gateway.reconciler.engine_up
    assert (await waiting).status_code == 200
    await back(watched)


async def test_who_owes_nothing_is_asked_nothing(watched: Running) -> None:
    with core(watched.simulator):
        seen = len(watched.simulator.seen)
        await asyncio.sleep(3 * SILENT_S)
        assert watched.gateway.reconciler.engine_up
        assert len(watched.simulator.seen) == seen


async def test_one_that_is_slow_but_answers_the_one_token_is_left_alone(watched: Running) -> None:
    watched.simulator.faults["chat"] = "hang"  # this request only: completions are computed
    waiting = asking(watched)
    await until(lambda: probes(watched.simulator) > 1)
    assert watched.gateway.reconciler.engine_up
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_of_several_engines_the_others_answer(tiny_reference_dir: Path, tmp_path: Path) -> None:
    async with AsyncExitStack() as closers:
        engines = [Simulator(tmp_path / f"{n}.sock", SERVED) for n in (1, 2)]
        for engine in engines:
            await engine.start()
            closers.push_async_callback(engine.stop)
        given = {"engine_url": ",".join(engine.url for engine in engines), "engine_silent_seconds": SILENT_S}
        made = gateway(tmp_path / "data", tiny_reference_dir, engines[0], **given)
        running = await closers.enter_async_context(made)
        fleet = running.gateway.reconciler
        assert isinstance(fleet, Fleet)
        await until(lambda: all(member.caught_up for member in fleet.members))
        assert (await running.http.post("/adapters", files=form("style"))).status_code == 201
        await until(lambda: all("style" in "".join(engine.loaded) for engine in engines))
        (name,) = engines[0].loaded
        home = fleet.choose(name)[0]
        with core(engines[home.number - 1]):
            waiting = asking(running)
            await until(lambda: not home.reconciler.engine_up)
            for model in ("style", "style", SERVED, SERVED):
                assert (await chat(running, model)).status_code == 200
            assert not waiting.done()
        assert (await waiting).status_code == 200
        await until(lambda: home.caught_up)
        assert fleet.choose(name)[0] is home


def test_only_time_that_somebody_waits_in_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("app.load.reconcile.pulse.time.monotonic", lambda: now[0])
    pulse = Pulse()

    def later(seconds: float) -> float:
        now[0] += seconds
        return pulse.silent_s

    assert later(50) == 0
    pulse.wait()
    pulse.wait()
    assert later(3) == 3
    pulse.leave()
    assert later(2) == 5
    pulse.leave()
    assert later(1000) == 5
    pulse.wait()
    assert later(1) == 6
    pulse.heard()
    assert later(4) == 4
    pulse.leave()
    pulse.heard()
    assert later(9) == 0


class Deferring:
    """An engine's metrics that say how many requests wait deferred, as vLLM 0.32 writes them."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.deferred = 0

    async def exposition(self) -> bytes:
        line = b'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="%s"} %d.0\n'
        return line % (b"capacity", 7) + line % (b"deferred", self.deferred)


@pytest.mark.hostile("P15")
async def test_requests_that_wait_deferred_for_long_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Others may be answered all the while: silence does not show them."""
    engine = Deferring()
    watch = HungWatch(cast("Engine", engine), 60.0, lambda: None)
    engine.pulse.wait()

    def said() -> list[str]:
        return [record.message for record in caplog.records if "deferred" in record.message]

    await watch.look_at_deferred(0.0)
    engine.deferred = 2
    for now in (20.0, 40.0, 60.0):
        await watch.look_at_deferred(now)
    assert said() == []
    for now in (81.0, 101.0):
        await watch.look_at_deferred(now)
    assert len(said()) == 1
    assert "2 requests wait deferred" in said()[0]
    engine.deferred = 0
    await watch.look_at_deferred(121.0)
    assert "no request waits deferred any more" in said()[1]
    assert not watch.hung
