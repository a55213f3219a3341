"""An engine of our own whose core hangs: left alone for a while, then killed and started again, with every adapter.

The engine is the simulator in a process of its own, under the house's supervisor; SIGUSR1 hangs its core, SIGUSR2 wakes it.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.load.embedded import orphans as session
from app.load.embedded import supervisor as embedded_module
from app.load.embedded.supervisor import EmbeddedEngine
from app.load.reconcile import hung as hung_module
from tests.support import tally
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.waiting import STUCK_S, until

ROOT = Path(__file__).resolve().parents[2]

BORN_HUNG = "born-hung"
"""A file beside the engine's script: an engine started while it is there hangs from the first."""

ENGINE = f"""
import asyncio, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.support.simulator import Simulator
async def main():
    simulator = Simulator(Path(sys.argv[1]), {SERVED!r})
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, simulator.faults.__setitem__, "core", "hang")
    loop.add_signal_handler(signal.SIGUSR2, simulator.faults.clear)
    if Path(__file__).with_name({BORN_HUNG!r}).exists():
        simulator.faults["core"] = "hang"
    await simulator.start()
    await asyncio.sleep(600)
asyncio.run(main())
"""

HUNG_S = 2.0
"""Seconds that a core may hang here; in service, a minute."""

NAMES = ("one", "two")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, seconds in {"LOOK_S": 0.05, "AGAIN_S": 0.05, "PROBE_S": 0.2}.items():
        monkeypatch.setattr(hung_module, name, seconds)
    for name, seconds in {"HUNG_S": HUNG_S, "HEALTH_S": 0.1, "POLL_S": 0.05, "BACKOFF_S": 0.05, "GRACE_S": 0.2}.items():
        monkeypatch.setattr(embedded_module, name, seconds)
    script = tmp_path / "fake_vllm.py"
    script.write_text(ENGINE)
    monkeypatch.setattr(embedded_module, "arguments", lambda _, socket: [sys.executable, str(script), str(socket)])
    monkeypatch.setattr(embedded_module, "missing_library", lambda: None)


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, tiny_reference_dir: Path) -> AsyncIterator[Running]:
    """A gateway with an engine of its own, and two adapters in it."""
    model = str(tiny_reference_dir.parent / "aligned")
    own = {"engine_url": None, "model": model, "served_model_name": SERVED, "base_through_noop": False}
    async with open_gateway(**own, engine_silent_seconds=0.3) as made:
        await until(lambda: made.gateway.reconciler.engine_up)
        for seed, name in enumerate(NAMES):
            answer = await made.http.post("/adapters", files=form(name, seed))
            assert answer.status_code == 201, answer.text
        yield made


def engine_of(running: Running) -> EmbeddedEngine:
    assert running.gateway.embedded is not None
    return running.gateway.embedded


def family(running: Running) -> list[int]:
    leader = engine_of(running).pid
    assert leader is not None
    return session.members(leader)


def tell(running: Running, number: signal.Signals) -> None:
    tally.injected["by the engine"] += number == signal.SIGUSR1
    for pid in family(running):
        if pid != engine_of(running).pid:
            os.kill(pid, number)


async def chat(running: Running, model: str) -> httpx.Response:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return await running.http.post("/v1/chat/completions", json=body)


async def hung(running: Running) -> "asyncio.Task[httpx.Response]":
    """Its core hangs, and is found so; a request that waits for it."""
    tell(running, signal.SIGUSR1)
    async with asyncio.timeout(STUCK_S):
        while (waiting := asyncio.create_task(chat(running, "one"))) in (await asyncio.wait({waiting}, timeout=0.1))[0]:
            pass  # answered before the signal came
    await until(lambda: not running.gateway.reconciler.engine_up)
    return waiting


async def restarts(running: Running) -> float:
    lines = (await running.http.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("gateway_engine_restarts_total")]
    return float(line.split()[-1])


async def test_it_is_killed_and_started_again_with_every_adapter(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    before, said = family(running), {name: (await chat(running, name)).json() for name in NAMES}
    assert await restarts(running) == 0
    waiting = await hung(running)
    assert await running.gateway.engine.healthy(), "its server says that it is well"
    await until(lambda: engine_of(running).generation == 2)
    assert (await waiting).status_code in (502, 503), "who waited is told"
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    await until(lambda: len(running.gateway.reconciler.loaded) == len(NAMES))
    assert {name: (await chat(running, name)).json() for name in NAMES} == said
    assert (await chat(running, SERVED)).status_code == 200
    assert await restarts(running) == 1
    events = [json.dumps(getattr(record, "fields", {})) for record in caplog.records if record.message == "engine"]
    assert sum("its core has hung for 2 s; it is started again" in line for line in events) == 1
    await asyncio.sleep(HUNG_S + 0.5)  # nor does it take the new one for the old
    assert (engine_of(running).generation, await restarts(running)) == (2, 1)


async def test_one_that_computes_again_in_time_is_left_alone(running: Running) -> None:
    """Nor do several short spells add up to a long one."""
    before = family(running)
    for _ in range(4):
        waiting = await hung(running)
        await asyncio.sleep(HUNG_S / 2)
        tell(running, signal.SIGUSR2)
        assert (await waiting).status_code == 200
        await until(lambda: running.gateway.reconciler.engine_up)
        await asyncio.sleep(0.3)  # until the supervisor has looked
    assert (family(running), await restarts(running)) == (before, 0)


async def test_a_new_one_owes_nothing_of_what_the_old_one_owed(running: Running, tmp_path: Path) -> None:
    """Its first token may take as long as that of the first engine might: it is suspected when it lets somebody wait."""
    (tmp_path / BORN_HUNG).touch()
    waiting = await hung(running)
    await until(lambda: engine_of(running).generation == 2)
    assert (await waiting).status_code in (502, 503)
    await asyncio.sleep(HUNG_S + 1.0)
    assert (engine_of(running).generation, await restarts(running)) == (2, 1)
