"""Costs of single operations, measured once and stored: the input of the capacity plan."""

import asyncio
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from app import __version__
from app.bench.engine.decode import artefacts_of, open_engine, written
from app.bench.progress import ReportProgress
from app.bench.screening.machine import this_machine
from app.demo.serving import serve_settings
from app.load.client.probe import probe
from app.serve.routing_table import RoutingTable, Served
from app.server.settings import Settings

KEPT: Final = Path(__file__).parents[1] / "results" / "costs.json"
"""Costs measured for this release; the file names the machine and the commands."""

LOADS: Final = 24
"""Number of loads timed."""

HASHED_BYTES: Final = 256 << 20
ROUTED: Final = 20_000
"""HASHED_BYTES: bytes hashed, ROUTED: versions put into a routing table, to time these operations."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs.

    screen_cpu_s: processor seconds to screen one module of 4096 × 4096, all cores together. load_s: seconds to load and
    probe one adapter of the demo in the real engine, median. hash_bytes_per_s: SHA-256, one core. route_s: seconds that a
    version adds to building the routing table. machine, made: descriptions of the machine and of the measurement.
    """

    screen_cpu_s: float
    load_s: float
    hash_bytes_per_s: float
    route_s: float
    machine: str
    made: str


def read_costs(path: Path) -> Costs:
    """Read costs from a file. Raises ValueError if it cannot be read as costs."""
    try:
        return Costs(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def measure(screening: Path, progress: ReportProgress) -> Costs:
    """Measure on this machine. screening: output of `bench screening --json`. Two minutes; starts the engine."""
    screened = json.loads(screening.read_text(encoding="utf-8"))
    progress("hashing", 0.1)
    hashed = _hash_rate()
    progress("routing", 0.2)
    routed = _route_seconds()
    progress("starting the engine", 0.3)
    loaded = asyncio.run(_load_seconds())
    machine = this_machine()
    return Costs(
        screen_cpu_s=_cpu_per_module(screened),
        load_s=loaded,
        hash_bytes_per_s=hashed,
        route_s=routed,
        machine=f"{machine.cpu}, {machine.cores} cores",
        made=f"version {__version__}, `bench screening --json` and `bench capacity --measure`, "
        f"others taking {float(screened['others']):.0%} of the cores meanwhile",
    )


def write_costs(costs: Costs, path: Path) -> None:
    """Write costs as JSON."""
    path.write_text(json.dumps(asdict(costs), indent=1) + "\n", encoding="utf-8")


def _cpu_per_module(screened: Mapping[str, Any]) -> float:
    """Return the cost of the first line of that benchmark: one adapter on q and v, not compact, not together."""
    first = screened["timings"][0]
    return float(first["cpu_seconds"]) / int(first["modules"])


def _hash_rate() -> float:
    data = bytes(1 << 20)
    rounds = HASHED_BYTES // len(data)
    start = time.thread_time()
    total = hashlib.sha256()
    for _ in range(rounds):
        total.update(data)
    return HASHED_BYTES / (time.thread_time() - start)


def _route_seconds() -> float:
    served = tuple(Served(f"a{n}", 1, f"a{n}@{n:012d}", f"{n:064d}", active=True) for n in range(ROUTED))
    routing_table = RoutingTable("model")
    start = time.thread_time()
    routing_table.replace(served)
    return (time.thread_time() - start) / ROUTED


async def _load_seconds() -> float:
    settings = Settings(**serve_settings())
    artefact, _ = artefacts_of(settings)["as uploaded"]
    took = []
    with tempfile.TemporaryDirectory() as home:
        async with open_engine(settings, Path(home)) as engine:
            for number in range(LOADS + 1):
                name = f"a{number}@{number:012d}"
                folder = written(artefact, Path(home) / str(number))
                start = time.perf_counter()
                await engine.load(name, folder)
                await probe(engine, name)
                took.append(time.perf_counter() - start)
    return statistics.median(took[1:])  # the first one warms up
