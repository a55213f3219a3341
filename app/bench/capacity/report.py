"""Capacity plan as text: tables in Markdown, so that docs/capacity.md is exactly this output."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from app.bench.capacity.plan import Limit, Plan, Result
from app.gateway.audit_job import BYTES_PER_S

UPLOADS_PER_HOUR: Final = (60, 3_600, 36_000)


def markdown(result: Result) -> str:
    """Return the complete page."""
    parts = (_head(), _assumed(result), _sizes(result), _hits(result), _screening(result), _breaks(result.limits))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head() -> Iterator[str]:
    yield "# Capacity, on paper"
    yield ""
    yield "This page is the output of `python -m app bench capacity`."
    yield ""
    yield "## Limits"
    yield ""
    yield "- Nothing here was run at these sizes."
    yield "- Bytes follow from shapes, and hit rates from a simulation. Times follow from the costs below, and are taken as"
    yield "  proportional to the number of adapters."
    yield "- The times of an audit are those of `store audit`, which reads as fast as it can. The gateway's own audit takes"
    yield f"  longer: it reads {BYTES_PER_S >> 20} MiB a second at most."


def _assumed(result: Result) -> Iterator[str]:
    given, costs = result.given, result.costs
    one, slots, host = result.adapter_bytes, result.slot_bytes, given.host_slots * result.adapter_bytes
    yield "## What is assumed"
    yield ""
    yield f"- Adapters: rank {given.rank} on q and v of Llama-2-7B, in two bytes, so {_bytes(one)} each."
    yield f"- Versions: {given.versions} of each adapter are kept. All of them are published, so all are loaded."
    yield f"- Engines: {given.engines}. Each has {given.gpu_slots} GPU slots (max_loras) of rank {given.max_rank} for seven"
    yield f"  kinds of module ({_bytes(slots)} of GPU memory), and {given.host_slots} slots in host memory (max_cpu_loras,"
    yield f"  {_bytes(host)})."
    yield f"- Requests: {given.rate:g} a second in all, each for one adapter and independent of the others."
    yield f"  Popularity follows Zipf's law. Each figure comes from {given.requests:,} simulated requests, of which"
    yield "  the second half counts. The caches are LRU."
    yield "- Costs: measured. A busy machine measures times that are too high, never too low."
    yield f"  - screening: {costs.screen_cpu_s * 1e3:.1f} ms of one core a module of 4096 × 4096"
    yield f"  - loading and probing: {costs.load_s * 1e3:.0f} ms a version (the demo's, 0.65 MB, CPU engine)"
    yield f"  - SHA-256: {costs.hash_bytes_per_s / 1e9:.2f} GB/s a core"
    yield f"  - routes: {costs.route_s * 1e6:.1f} µs a version"
    yield f"  - on {costs.machine}; {costs.made}"


def _sizes(result: Result) -> Iterator[str]:
    yield "## Bytes and times"
    yield ""
    yield from _table(
        ("", *(f"{plan.adapters:,} adapters" for plan in result.plans)),
        (
            ("artefacts on disk", *(_bytes(plan.stored) for plan in result.plans)),
            ("an engine's list of models, read at every pass", *(_bytes(plan.list_bytes) for plan in result.plans)),
            ("filling an engine that comes back", *(_time(plan.refill_s) for plan in result.plans)),
            ("one audit (reads everything)", *(_time(plan.audit_s) for plan in result.plans)),
            ("the gateway's interpreter, for each change", *(_time(plan.stall_s) for plan in result.plans)),
            ("share of adapters in one engine's GPU", *(_share(plan, result.given.gpu_slots) for plan in result.plans)),
            ("share in one engine's host memory", *(_share(plan, result.given.host_slots) for plan in result.plans)),
        ),
    )


def _hits(result: Result) -> Iterator[str]:
    given = result.given
    yield "## How often the adapter is there"
    yield ""
    yield "The figures are shares of requests. *Affinity*: an adapter keeps to one engine, as with this gateway. *Spread*:"
    yield "any engine answers. An adapter that is not in host memory is read from disk while its request waits."
    yield ""
    rows = []
    for plan in result.plans:
        for one in plan.hits:
            missed = (1 - one.host_affine) * given.rate
            read = f"{missed:.1f}/s, {missed * result.adapter_bytes / 1e6:.0f} MB/s"
            shares = (one.gpu_affine, one.gpu_spread, one.host_affine, one.host_spread)
            rows.append((f"{plan.adapters:,}", f"{one.exponent:g}", *(f"{share:.0%}" for share in shares), read))
    names = ("GPU, affinity", "GPU, spread", "host, affinity", "host, spread", "read from disk, affinity")
    yield from _table(("adapters", "Zipf", *names), rows)


def _screening(result: Result) -> Iterator[str]:
    yield "## Cores for screening"
    yield ""
    yield f"{result.screen_cpu_s:.2f} s of one core an adapter (64 modules), for any number of adapters."
    yield ""
    rows = []
    for uploads in UPLOADS_PER_HOUR:
        cores = uploads / 3600 * result.screen_cpu_s
        rows.append((f"{uploads:,}", f"{cores:.2f}", f"{uploads / 3600 * result.adapter_bytes * 8 / 1e6:.0f} Mbit/s"))
    yield from _table(("uploads an hour", "cores, fully used", "arriving"), rows)


def _breaks(limits: Sequence[Limit]) -> Iterator[str]:
    yield "## What breaks first"
    yield ""
    yield from _table(
        ("", "beyond, adapters", "because"), ((one.what, f"{one.adapters:,}", one.because) for one in limits)
    )
    yield ""
    yield "A shared series costs detail in the metrics and nothing else. The other limits have two causes: every version is"
    yield "loaded into every engine, and everything that is stored is read. Beyond them, engines must fetch adapters on"
    yield "request (a resolver in the engine) instead of being filled, and audits must read samples."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _share(plan: Plan, slots: int) -> str:
    return f"{min(1.0, slots / plan.adapters):.2%}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
