"""`python -m tests.support.many --adapters 5000`: what a gateway with many adapters takes to start, list and change.

With `--tenants 1000 --keys 100000` the adapters and as many keys are spread over tenants, and one tenant's chats are timed
beside those of a gateway that has one tenant with one adapter and one key, in turns.

The whole gateway in this process, its store and catalogue in files, over the engine's simulator, whose own time is none.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import insert

from app.domain.api_keys import digest_of_key
from app.domain.names import AdapterName
from app.domain.tenants import full_name
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.tenant_tables import api_keys
from tests.store.making import artefact, begun, received, verdict
from tests.support.gateway import KEY, SERVED, Running, form, gateway
from tests.support.references import make_reference
from tests.support.simulator import Simulator

FILLED_S = 900.0


CHATS: Final = 400
"""Chats that are timed at each of two gateways."""


@dataclass(frozen=True)
class Size:
    """Size of the catalogue to fill. tenants: besides `default`, which has all adapters if there are none."""

    adapters: int
    tenants: int = 0
    keys: int = 0

    def name(self, number: int) -> AdapterName:
        """The adapter of this number."""
        plain = f"adapter-{number:05}"
        return AdapterName(full_name(f"tenant-{number % self.tenants}", plain) if self.tenants else plain)


def fill_keys(catalogue: Catalogue, size: Size) -> None:
    """Keys that may chat and upload, at once: making each in a transaction of its own would take an hour."""
    rows = [
        {
            "tenant": f"tenant-{number % size.tenants}",
            "name": f"key-{number}",
            "roles": "chat,upload",
            "digest": digest_of_key(key_of(number)).hex(),
            "created_at": datetime.now(UTC),
            "revision": number + 1,
        }
        for number in range(size.keys)
    ]
    with catalogue._database.writing() as connection:
        if rows:
            connection.execute(insert(api_keys), rows)


def fill(data: Path, size: Size, parameters: str) -> None:
    """Adapters with one published version each, screened by these parameters, and an artefact of 2 kB; and keys."""
    catalogue = Catalogue(sqlite_url(data / "catalogue.sqlite"))
    fill_keys(catalogue, size)
    with BlobStore(data / "artefacts") as blobs:
        for number in range(size.adapters):
            name = size.name(number)
            blobs.put(artefact(number))
            begun(catalogue, name, received(number), parameters)
            catalogue.record_validated(name, 1)
            catalogue.record_screened(name, 1, verdict(seed=number), "{}")
            catalogue.record_stored(name, 1, artefact(number).digest)
            catalogue.activate(name, 1)
    catalogue.close()


async def median_ms(work: Callable[[], Awaitable[object]], times: int = 9) -> float:
    """Median of several runs, milliseconds."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e3


async def chat(running: Running, key: str, model: str) -> float:
    """Seconds that one chat took."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    began = time.perf_counter()
    answer = await running.http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - began


async def tenant_figures(many: Running, one: Running, size: Size) -> dict[str, float]:
    """One tenant's list, and its chats beside those of a gateway with little in it."""
    own = {"Authorization": f"Bearer {key_of(0)}"}
    expected = len(range(0, size.adapters, size.tenants))

    async def listed() -> None:
        answer = await many.http.get("/adapters", headers=own)
        assert len(answer.json()["adapters"]) == min(expected, 100)

    alone, among = [], []
    for _ in range(CHATS):
        alone.append(await chat(one, KEY, "adapter-00000"))
        among.append(await chat(many, key_of(0), "adapter-00000"))
    return {
        "one tenant's list, ms": await median_ms(listed),
        "chat, p50, one tenant alone, ms": statistics.median(alone) * 1e3,
        "chat, p50, among all, ms": statistics.median(among) * 1e3,
    }


def key_of(number: int) -> str:
    """The key of this number, of which the catalogue has the digest."""
    return f"many-{number}"


async def figures(running: Running, count: int, opened: float) -> dict[str, float]:
    """All of them, by what they measure."""
    begun = time.perf_counter()
    async with asyncio.timeout(FILLED_S):
        while len(running.simulator.loaded) < count:
            await asyncio.sleep(0.05)
    filled = time.perf_counter() - begun
    seeds = iter(range(1000))

    async def listed(limit: int) -> None:
        assert (await running.http.get("/adapters", params={"limit": limit})).status_code == 200

    async def pushed() -> None:
        number = next(seeds)
        answer = await running.http.post("/adapters", files=form(f"new-{number}", number))
        assert answer.status_code == 201, answer.text

    follower = running.gateway.context.uploads.publishing._follower
    return {
        "start: rooms open, s": opened,
        "start: engine filled besides, s": filled,
        "page of 100, ms": await median_ms(lambda: listed(100)),
        "page of 1000, ms": await median_ms(lambda: listed(1000)),
        "following one change, ms": await median_ms(follower.refresh),
        "upload to served, ms": await median_ms(pushed),
    }


async def measured(size: Size) -> dict[str, float]:
    """Fill, start, measure."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        reference = make_reference(home / "reference-of")
        simulator = Simulator(home / "e.sock", SERVED)
        await simulator.start()
        try:
            async with gateway(home / "data", reference, simulator, audit_seconds=0) as running:
                parameters = running.gateway.context.uploads.components.parameters
            await asyncio.to_thread(fill, home / "data", size, parameters)
            begun = time.perf_counter()
            async with gateway(home / "data", reference, simulator, audit_seconds=0) as running:
                found = await figures(running, size.adapters, time.perf_counter() - begun)
                if size.tenants:
                    found |= await beside_one(home, reference, running, size)
                return found
        finally:
            await simulator.stop()


async def beside_one(home: Path, reference: Path, many: Running, size: Size) -> dict[str, float]:
    """The figures of tenants, with a second gateway for comparison."""
    simulator = Simulator(home / "one.sock", SERVED)
    await simulator.start()
    try:
        async with gateway(home / "one", reference, simulator, audit_seconds=0) as one:
            assert (await one.http.post("/adapters", files=form("adapter-00000"))).status_code == 201
            return await tenant_figures(many, one, size)
    finally:
        await simulator.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=5000)
    parser.add_argument("--tenants", type=int, default=0)
    parser.add_argument("--keys", type=int, default=0)
    asked = parser.parse_args()
    for what, value in asyncio.run(measured(Size(asked.adapters, asked.tenants, asked.keys))).items():
        sys.stdout.write(f"{what:34} {value:10.1f}\n")
