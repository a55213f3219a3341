"""Two real engines that fetch adapters by themselves, behind one gateway whose artefacts are on S3-compatible storage."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.load.fleet.fleet import Fleet
from app.load.fleet.member import Member
from app.store.audit.audit import audit
from app.store.catalogue.database import sqlite_url
from tests.support import tiny_model
from tests.support.engine import LONG_CONTEXT
from tests.support.gateway import KEY, Running, gateway
from tests.support.plugin_engine import SAY, PluginEngine, files, plugin_reference
from tests.support.s3 import Storage, storage
from tests.support.served import on_a_port
from tests.support.simulator import Simulator
from tests.support.waiting import STUCK_S

__all__ = ["plugin_reference", "storage"]

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long]

SERVED: dict[str, Any] = {
    "model": tiny_model.MODEL_NAME,
    "max_lora_rank": 8,
    "max_pruned_share": 1.0,
    "tau": 1e9,
    "reject_tau": 1e9,
    "engine_resolves": True,
}
NAMES = ("bard", "clerk", "judge")
LONG = LONG_CONTEXT - 64  # tokens of an answer: tens of seconds, and far more bytes than lie in sockets on the way


@pytest.fixture
def pair(tmp_path: Path, tiny_model_dir: Path) -> Iterator[tuple[PluginEngine, PluginEngine]]:
    """Not started yet: they must be told where the gateway listens."""
    for name in ("engine-1", "engine-2"):
        (tmp_path / name).mkdir()
    made = tuple(PluginEngine(tmp_path / name, tiny_model_dir, "", LONG_CONTEXT) for name in ("engine-1", "engine-2"))
    yield made[0], made[1]
    for engine in made:
        engine.kill()
        engine.http.close()


async def pieces(http: httpx.AsyncClient, model: str) -> AsyncIterator[Any]:
    """A long answer, event by event."""
    long = {**SAY, "model": model, "max_tokens": LONG, "stream": True, "ignore_eos": True}
    async with http.stream("POST", "/v1/chat/completions", json=long) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def says(http: httpx.AsyncClient, model: str) -> Any:
    answer = await http.post("/v1/chat/completions", json={"model": model, **SAY})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def back(member: Member) -> None:
    async with asyncio.timeout(STUCK_S):
        while not (member.reconciler.engine_up and member.caught_up):
            await asyncio.sleep(0.1)


async def test_an_engine_killed_and_started_empty_serves_again_and_nobody_fills_it(
    plugin_reference: Path,
    tmp_path: Path,
    storage: Storage,
    pair: tuple[PluginEngine, PluginEngine],
    tiny_adapter: Callable[[int], Path],
) -> None:
    unused = Simulator(tmp_path / "unused.sock")
    urls = ",".join(f"unix:{engine.socket}" for engine in pair)
    settings = {**SERVED, "engine_url": urls, "store_url": storage.url}
    async with gateway(tmp_path / "data", plugin_reference, unused, **settings) as wired, on_a_port(wired) as port:
        url = f"http://127.0.0.1:{port}"
        for engine in pair:
            engine.gateway_url = url
        await asyncio.gather(*(asyncio.to_thread(engine.start) for engine in pair))
        key = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=key, timeout=120) as http:
            await _through_a_death(wired, http, pair, tiny_adapter)
        url = sqlite_url(wired.data / "catalogue.sqlite")
        found = await asyncio.to_thread(audit, wired.data, url, secrets=[KEY], store_url=storage.url)
        assert found.findings == ()
        assert found.counts["objects_read_back"] == len(NAMES)


async def _through_a_death(
    wired: Running,
    http: httpx.AsyncClient,
    pair: tuple[PluginEngine, PluginEngine],
    tiny_adapter: Callable[[int], Path],
) -> None:
    fleet = wired.gateway.engine
    assert isinstance(fleet, Fleet)
    for member in fleet.members:
        await back(member)
    own = {}
    for seed, name in enumerate(NAMES, 1):
        pushed = await http.post("/adapters", files=files(name, tiny_adapter(seed)))
        assert (pushed.status_code, pushed.json()["state"]) == (201, "ready"), pushed.text
        own[name] = f"{name}@{pushed.json()['digest'][:12]}"
    said = {name: await says(http, name) for name in NAMES}
    assert len(set(said.values())) == len(NAMES)
    for engine in pair:  # either answers to all, through its resolver, alike
        assert {name: await asyncio.to_thread(engine.says, own[name]) for name in NAMES} == said

    home = next(name for name in NAMES if fleet.choose(own[name])[0].number == 2)
    victim, member = pair[1], fleet.members[1]
    stream = pieces(http, home)
    await anext(stream)
    assert member.flying == 1
    for pid in victim.family():
        with contextlib.suppress(ProcessLookupError):  # one may go by itself when another has gone
            os.kill(pid, signal.SIGKILL)
    *said_before, last = [piece async for piece in stream]
    ended = [piece for piece in said_before if piece["choices"][0]["finish_reason"] is not None]
    assert not ended, f"the answer was over after {len(said_before)} of {LONG} tokens, before its engine was killed"
    assert last["error"]["code"] == "upstream_failed", last  # what was in flight, and nothing else
    await asyncio.to_thread(victim.kill)
    for _ in range(5):
        assert {name: await says(http, name) for name in NAMES} == said
    assert not member.reconciler.engine_up

    await asyncio.to_thread(victim.start)
    assert await asyncio.to_thread(victim.names) == {tiny_model.MODEL_NAME}
    await back(member)
    assert fleet.choose(own[home])[0] is member
    assert await asyncio.to_thread(victim.names) == {tiny_model.MODEL_NAME}  # up again, and nobody filled it
    assert await says(http, home) == said[home]
    assert await asyncio.to_thread(victim.names) == {tiny_model.MODEL_NAME, own[home]}  # what it was asked for
