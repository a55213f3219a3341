"""`python -m tests.support.many --adapters 5000`: what a gateway with many adapters takes to start, list and change.

The whole gateway in this process, its store and catalogue in files, over the engine's simulator, whose own time is none.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.domain.names import AdapterName
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from tests.store.making import artefact, begun, received, verdict
from tests.support.gateway import SERVED, Running, form, gateway
from tests.support.references import make_reference
from tests.support.simulator import Simulator

FILLED_S = 900.0


def fill(data: Path, count: int, parameters: str) -> None:
    """Adapters with one published version each, screened by these parameters, and an artefact of 2 kB."""
    catalogue = Catalogue(sqlite_url(data / "catalogue.sqlite"))
    with BlobStore(data / "artefacts") as blobs:
        for number in range(count):
            name = AdapterName(f"adapter-{number:05}")
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


async def figures(running: Running, count: int, opened: float) -> dict[str, float]:
    """All of them, by what they measure."""
    begun = time.perf_counter()
    async with asyncio.timeout(FILLED_S):
        while len(running.simulator.loaded) < count:
            await asyncio.sleep(0.05)
    filled = time.perf_counter() - begun
    seeds = iter(range(1000))

    async def listed(limit: int) -> None:
        assert len((await running.http.get("/adapters", params={"limit": limit})).json()["adapters"]) == min(
            limit, count
        )

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


async def measured(count: int) -> dict[str, float]:
    """Fill, start, measure."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        reference = make_reference(home / "reference-of")
        simulator = Simulator(home / "e.sock", SERVED)
        await simulator.start()
        try:
            async with gateway(home / "data", reference, simulator, audit_seconds=0) as running:
                parameters = running.gateway.context.uploads.components.parameters
            await asyncio.to_thread(fill, home / "data", count, parameters)
            begun = time.perf_counter()
            async with gateway(home / "data", reference, simulator, audit_seconds=0) as running:
                return await figures(running, count, time.perf_counter() - begun)
        finally:
            await simulator.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=5000)
    asked = parser.parse_args().adapters
    for what, value in asyncio.run(measured(asked)).items():
        sys.stdout.write(f"{what:34} {value:10.1f}\n")
