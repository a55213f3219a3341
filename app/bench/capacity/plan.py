"""`python -m app bench capacity`: capacity of one gateway and its engines, calculated.

Sizes follow from shapes, hit rates from a simulation, times from measured costs (costs.py). Nothing is run at the sizes
in question; the assumptions are printed with the result.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.bench.capacity.costs import Costs
from app.bench.screening.synthetic import llama_modules
from app.gateway.audit_job import BYTES_PER_S
from app.load.client.model_list import LIST_BYTES

SIZES: Final = (100, 10_000, 1_000_000)
EXPONENTS: Final = (0.8, 1.0, 1.2)
"""Zipf exponents: from flat to steep."""

CARD_BYTES: Final = 560
"""Bytes of one adapter in vLLM 0.32's list of models, with a name of 36 characters and a path of 92."""

ALL_KINDS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS: Final = 32
"""Layers of Llama-2-7B."""

DTYPE_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Assumptions of the calculation; each is an option of the command.

    rank: of adapters on q and v of Llama-2-7B. max_rank: the engine's. versions: kept of each adapter. gpu_slots and
    host_slots: max_loras and max_cpu_loras of an engine. rate: requests a second in total. refill_s: seconds a restarted
    engine may take until all adapters are loaded. audit_s: seconds between audits. stall_s: seconds one change of the
    catalogue may occupy the gateway's interpreter. disk_bytes: of the artefact store. requests: simulated per figure.
    """

    engines: int = 4
    rank: int = 16
    max_rank: int = 64
    versions: int = 2
    gpu_slots: int = 8
    host_slots: int = 256
    rate: float = 50.0
    refill_s: float = 600.0
    audit_s: float = 3600.0
    stall_s: float = 0.1
    disk_bytes: float = 4e12
    requests: int = 200_000


@dataclass(frozen=True, slots=True)
class Hits:
    """Shares of requests that find their adapter in GPU slots and in host memory, with and without affinity."""

    exponent: float
    gpu_affine: float
    gpu_spread: float
    host_affine: float
    host_spread: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Figures for one number of adapters. stored: bytes on disk. refill_s: filling one engine. audit_s: of one core."""

    adapters: int
    stored: int
    list_bytes: int
    refill_s: float
    audit_s: float
    stall_s: float
    hits: tuple[Hits, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: the resource, the number of adapters from which it is exceeded, and the calculation."""

    what: str
    adapters: int
    because: str


@dataclass(frozen=True, slots=True)
class Result:
    """Result. adapter_bytes: weights of one adapter. slot_bytes: GPU memory of an engine's slots, taken at its start."""

    given: Assumptions
    costs: Costs
    adapter_bytes: int
    slot_bytes: int
    screen_cpu_s: float
    plans: tuple[Plan, ...]
    limits: tuple[Limit, ...] = field(default=())


def run(given: Assumptions, costs: Costs, sizes: Sequence[int] = SIZES, seed: int = 0) -> Result:
    """Calculate the plan. Deterministic."""
    weights = adapter_bytes(given.rank)
    plans = tuple(_plan(given, costs, weights, adapters, seed) for adapters in sizes)
    modules = len(llama_modules(LAYERS))
    slots = given.gpu_slots * adapter_bytes(given.max_rank, ALL_KINDS)
    return Result(
        given, costs, weights, slots, costs.screen_cpu_s * modules, plans, tuple(limits(given, costs, weights))
    )


def adapter_bytes(rank: int, kinds: tuple[str, ...] = ("q_proj", "v_proj")) -> int:
    """Return the bytes of a LoRA adapter's weights on these kinds of module of Llama-2-7B."""
    shapes = llama_modules(LAYERS, kinds).values()
    return sum(rank * (shape.d_in + shape.d_out) for shape in shapes) * DTYPE_BYTES


def limits(given: Assumptions, costs: Costs, weights: int) -> list[Limit]:
    """Return the limits, the one reached first in front."""
    stored = weights * given.versions
    audit_bytes_per_s = min(costs.hash_bytes_per_s, BYTES_PER_S)
    found = [
        Limit("series of its own in the metrics", _MAX_SERIES, "labels are bounded; further adapters share one"),
        Limit(
            "the engine's list of models",
            LIST_BYTES // CARD_BYTES // given.versions,
            f"{LIST_BYTES / 2**20:.0f} MiB of it are read, {CARD_BYTES} bytes a version; "
            "an engine with a longer list counts as away",
        ),
        Limit(
            "filling an engine that comes back",
            int(given.refill_s / costs.load_s / given.versions),
            f"{costs.load_s * 1e3:.0f} ms a version, one at a time, in {given.refill_s:.0f} s",
        ),
        Limit(
            "the gateway's own audit",
            int(given.audit_s * audit_bytes_per_s / stored),
            f"reads {stored / 1e6:.0f} MB each at {audit_bytes_per_s / 2**20:.0f} MiB/s, every {given.audit_s:.0f} s",
        ),
        Limit(
            "a change of the catalogue",
            int(given.stall_s / costs.route_s / given.versions),
            f"rebuilds all routes, {costs.route_s * 1e6:.1f} µs a version, in {given.stall_s:.1f} s",
        ),
        Limit(
            "the disk",
            int(given.disk_bytes / stored),
            f"{given.disk_bytes / 1e12:.0f} TB, {stored / 1e6:.0f} MB an adapter",
        ),
    ]
    return sorted(found, key=lambda one: one.adapters)


def hit_rate(names: NDArray[np.int64], engine: NDArray[np.int64], slots: int) -> float:
    """Return the share of requests, in the second half, that hit the LRU cache of `slots` adapters of their engine.

    names, engine: of each request, in order.
    """
    caches: dict[int, OrderedDict[int, None]] = {}
    hits, half = 0, len(names) // 2
    for turn, (name, at) in enumerate(zip(names.tolist(), engine.tolist(), strict=True)):
        cache = caches.setdefault(at, OrderedDict())
        if name in cache:
            cache.move_to_end(name)
            hits += turn >= half
        else:
            cache[name] = None
            if len(cache) > slots:
                cache.popitem(last=False)
    return hits / (len(names) - half)


def zipf(adapters: int, exponent: float, requests: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the adapter of each request: the k-th most popular has a probability proportional to k^-exponent."""
    share = np.cumsum(np.arange(1, adapters + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(share / share[-1], generator.random(requests)).astype(np.int64)


_MAX_SERIES: Final = 200
"""Copy of observe.adapter_label.MAX_ADAPTERS; a test asserts that they are equal."""


def _plan(given: Assumptions, costs: Costs, weights: int, adapters: int, seed: int) -> Plan:
    versions = adapters * given.versions
    return Plan(
        adapters,
        stored=versions * weights,
        list_bytes=versions * CARD_BYTES,
        refill_s=versions * costs.load_s,
        audit_s=versions * weights / costs.hash_bytes_per_s,
        stall_s=versions * costs.route_s,
        hits=tuple(_hits(given, adapters, exponent, seed) for exponent in EXPONENTS),
    )


def _hits(given: Assumptions, adapters: int, exponent: float, seed: int) -> Hits:
    generator = np.random.default_rng(seed)
    names = zipf(adapters, exponent, given.requests, generator)
    home = generator.integers(0, given.engines, adapters)[names]  # as rendezvous hashing distributes them
    anywhere = generator.integers(0, given.engines, given.requests)
    rates = [hit_rate(names, at, slots) for slots in (given.gpu_slots, given.host_slots) for at in (home, anywhere)]
    return Hits(exponent, *rates)
