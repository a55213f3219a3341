"""SIGTERM to a gateway: not ready, nothing new; running answers end as they would, late ones are cut off and told."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest_asyncio

from tests.support.gateway import SERVED
from tests.support.simulator import Simulator
from tests.support.waiting import STUCK_S

CHAT = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
LONG_S = "600"


@dataclass(frozen=True)
class Served:
    """A gateway in a process of its own, and its simulated engine."""

    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    simulator: Simulator
    log: Path

    async def stopping(self) -> None:
        """Send SIGTERM, and wait until the gateway has begun to end."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STUCK_S):
            while (await self.http.get("/ready")).json()["parts"].get("gateway") != "stopping":
                await asyncio.sleep(0.01)

    async def ended(self) -> str:
        """Wait for the process's end, and return its log."""
        async with asyncio.timeout(STUCK_S):
            await self.process.wait()
        return self.log.read_text(encoding="utf-8")


@pytest_asyncio.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    made = Simulator(tmp_path / "e.sock", SERVED)
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def served(simulator: Simulator, reference: Path, home: Path, drain_seconds: str) -> AsyncIterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {"port": str(port), "reference": str(reference), "model": SERVED, "data": str(home / "data"), "top-k": "4"}
    flags |= {"engine-url": simulator.url, "drain-seconds": drain_seconds, "min-free-disk-mib": "0", "energy": "1.0"}
    command = [sys.executable, "-m", "app", "serve", "--open", "--screen-sandbox", "false"]
    command += [word for name, value in flags.items() for word in (f"--{name}", value)]
    log = home / "log"
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(*command, stdout=written, stderr=written)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=STUCK_S) as http:
        try:
            async with asyncio.timeout(STUCK_S):
                while not await _ready(http):
                    assert process.returncode is None, log.read_text(encoding="utf-8")
                    await asyncio.sleep(0.05)
            yield Served(process, http, simulator, log)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_an_answer_that_runs_ends_as_it_would_and_nothing_new_begins(
    simulator: Simulator, tiny_reference_dir: Path, tmp_path: Path
) -> None:
    async with served(simulator, tiny_reference_dir, tmp_path, LONG_S) as gateway:
        simulator.faults["core"] = "slow"
        streamed = asyncio.create_task(gateway.http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
        whole = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=CHAT))
        async with asyncio.timeout(STUCK_S):
            while simulator.running < 2:
                await asyncio.sleep(0.01)
        await gateway.stopping()
        ready = await gateway.http.get("/ready")
        assert (ready.status_code, (await gateway.http.get("/health")).status_code) == (503, 200)
        for method, path in (("POST", "/v1/chat/completions"), ("POST", "/adapters"), ("GET", "/v1/models")):
            refused = await gateway.http.request(method, path, json=CHAT if method == "POST" else None)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
        assert gateway.process.returncode is None
        del simulator.faults["core"]
        answer = await whole
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert (await streamed).text.endswith("data: [DONE]\n\n")
        log = await gateway.ended()
    assert "event=drained cut_off=0" in log
    assert "Traceback" not in log


async def test_what_takes_too_long_is_cut_off_and_told(
    simulator: Simulator, tiny_reference_dir: Path, tmp_path: Path
) -> None:
    async with served(simulator, tiny_reference_dir, tmp_path, "0.5") as gateway:
        watching = asyncio.create_task(gateway.http.get("/adapters/nobody/events", params={"after": 0}))
        simulator.faults["chat"] = "slow"  # a stream without an end
        streamed = asyncio.create_task(gateway.http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
        async with asyncio.timeout(STUCK_S):
            while not simulator.chunks:
                await asyncio.sleep(0.01)
        simulator.faults["chat"] = "hang"
        whole = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=CHAT))
        async with asyncio.timeout(STUCK_S):
            while simulator.running < 2:
                await asyncio.sleep(0.01)
        gateway.process.send_signal(signal.SIGTERM)
        *pieces, last = (await streamed).text.strip().split("\n\n")
        assert "choices" in json.loads(pieces[0].removeprefix("data: "))
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        answer = await whole
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
        watched = await watching
        assert (watched.status_code, watched.text) == (200, ": watching\n\n")
        log = await gateway.ended()
    assert "event=drained cut_off=2" in log
    assert "Traceback" not in log
    async with asyncio.timeout(STUCK_S):
        while simulator.running:
            await asyncio.sleep(0.01)


async def test_a_second_signal_does_not_wait(simulator: Simulator, tiny_reference_dir: Path, tmp_path: Path) -> None:
    async with served(simulator, tiny_reference_dir, tmp_path, LONG_S) as gateway:
        simulator.faults["chat"] = "hang"
        whole = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=CHAT))
        async with asyncio.timeout(STUCK_S):
            while not simulator.running:
                await asyncio.sleep(0.01)
        await gateway.stopping()
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.ended()
        await asyncio.gather(whole, return_exceptions=True)


async def test_an_idle_gateway_ends_at_once(simulator: Simulator, tiny_reference_dir: Path, tmp_path: Path) -> None:
    async with served(simulator, tiny_reference_dir, tmp_path, LONG_S) as gateway:
        gateway.process.send_signal(signal.SIGINT)
        log = await gateway.ended()
    assert f"event=listening url={str(gateway.http.base_url).rstrip('/')} " in log
    assert "event=stopping signal=SIGINT" in log
    assert log.splitlines()[-1].endswith("event=stopped")
    assert all(line.startswith("time=2") for line in log.splitlines())
