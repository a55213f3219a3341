"""Declarations of every metric this gateway exports: name, unit, labels, and the values a label can have.

Base units (seconds, bytes), `_total` on counters, no colons (those are for recording rules). No label takes unbounded
values from uploaders: `adapter` has at most `adapter_label.MAX_ADAPTERS` values and two more, `block` and `module` come
from the reference, all others from lists in the code.

One process, one registry: a gateway is a single process by design (routes and reconciler run in it, and the
lock of an unshared store refuses a second one), so there are no per-worker values to add up.
"""

from typing import Final

from app.observe.metric_registry import Registry

STAGE_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Buckets of stage durations, seconds: a compact screening takes milliseconds, a 7B upload over a slow line minutes."""

REQUEST_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets of inference request durations, seconds: body read to last byte."""

TOKEN_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
"""Buckets of the time between two tokens, seconds: from a tiny model to an engine that swaps adapters."""

OVERHEAD_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
"""Buckets of the gateway's own work on one request, seconds: tenths of milliseconds, more for long streams."""

SCORE_BUCKETS: Final = (
    -10.0,
    -5.0,
    -3.0,
    -2.0,
    -1.0,
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    3.5,
    4.0,
    5.0,
    7.5,
    10.0,
    20.0,
)
"""Buckets of E-DIEM, in interquartile ranges; narrowest around the default τ."""


class Uploads:
    """Metrics of uploads, the quarantine and the store's disk space."""

    def __init__(self, r: Registry) -> None:
        self.outcomes = r.counter("gateway_uploads_total", "Uploads by what became of them", ["outcome"])
        self.rescreened = r.counter(
            "gateway_rescreens_total",
            "Kept uploads screened again, by result (new ones count as uploads too)",
            ["result"],
        )
        self.rejected = r.counter("gateway_rejected_total", "Refusals by stage and code", ["stage", "code"])
        self.in_progress = r.gauge("gateway_uploads_in_progress", "Uploads being received or screened now")
        self.screening = r.gauge("gateway_versions_in_progress", "Versions on their way from validate to store")
        self.quarantine_files = r.gauge("gateway_quarantine_files", "Files in the quarantine")
        self.quarantine_bytes = r.gauge("gateway_quarantine_bytes", "Bytes in the quarantine")
        self.store_free = r.gauge("gateway_store_free_bytes", "Bytes free where artefacts are stored")
        self.store_size = r.gauge("gateway_store_size_bytes", "Bytes that file system has in all")
        self.store_reserve = r.gauge("gateway_store_reserve_bytes", "Uploads are refused when less than this is free")


class Screening:
    """Metrics of screening: decisions, scores, stage durations, adapters by state."""

    def __init__(self, r: Registry) -> None:
        self.modules = r.counter(
            "gateway_modules_total", "Screened modules by decision and reason", ["decision", "reason"]
        )
        self.block_modules = r.counter(
            "gateway_block_modules_total",
            "Screened modules by block (zero-padded number, or none), module type and decision",
            ["block", "module", "decision"],
        )
        self.scores = r.histogram(
            "gateway_module_score", "E-DIEM of screened modules, interquartile ranges", SCORE_BUCKETS, ["comparison"]
        )
        self.stage_seconds = r.histogram(
            "gateway_stage_duration_seconds",
            "Time in one stage, whether it succeeds or not",
            STAGE_BUCKETS_S,
            ["stage"],
        )
        self.adapter_modules = r.gauge(
            "gateway_adapter_modules", "Modules of an adapter's active version", ["adapter", "decision"]
        )
        self.ready = r.gauge("gateway_adapters_ready", "Adapters whose active version is served")
        self.pending = r.gauge("gateway_versions_pending", "Stored versions waiting for the engine")


class Engine:
    """Metrics of the engine: availability, adapters held and desired, loads."""

    def __init__(self, r: Registry) -> None:
        self.up = r.gauge("gateway_engine_up", "1 while the engine answers, else 0")
        self.resident = r.gauge("gateway_engine_adapters", "Versions verified, loaded and probed in the engine")
        self.desired = r.gauge("gateway_engine_adapters_desired", "Versions the engine should hold")
        self.failing = r.gauge("gateway_engine_adapters_failing", "Versions that did not load when last tried")
        self.loads = r.counter("gateway_engine_loads_total", "Tries to load a version, by result", ["result"])
        self.lost = r.counter(
            "gateway_engine_adapters_lost_total", "Loaded versions the engine turned out to have forgotten"
        )
        self.restarts = r.counter("gateway_engine_restarts_total", "Times the embedded engine was started again")


class Fleet:
    """Metrics of several engines behind one gateway; no series with a single engine.

    Label engine: the engine's position in GATEWAY_ENGINE_URL, from 1; if DNS lists the engines, the lowest number that
    was free when the engine appeared.
    """

    def __init__(self, r: Registry) -> None:
        by_engine = ["engine"]
        self.up = r.gauge("gateway_fleet_engine_up", "Of several engines: 1 while this one answers, else 0", by_engine)
        self.resident = r.gauge(
            "gateway_fleet_engine_adapters", "Of several engines: versions loaded and probed in this one", by_engine
        )
        self.in_flight = r.gauge(
            "gateway_fleet_engine_requests_in_flight", "Of several engines: requests in flight on this one", by_engine
        )
        self.asked = r.counter(
            "gateway_fleet_engine_requests_total",
            "Of several engines: requests to this one, by result (unreached, forgotten: sent on to another)",
            ["engine", "result"],
        )


class Requests:
    """Metrics of inference requests: counts, errors, tokens, latencies."""

    def __init__(self, r: Registry) -> None:
        by_adapter = ["adapter"]
        self.answered = r.counter(
            "gateway_requests_total", "Inference requests by adapter and status", ["adapter", "status"]
        )
        self.errors = r.counter(
            "gateway_request_errors_total", "Inference requests that failed, by adapter and code", ["adapter", "code"]
        )
        self.tokens = r.counter(
            "gateway_tokens_total", "Tokens by adapter and kind (prompt, completion)", ["adapter", "kind"]
        )
        self.seconds = r.histogram(
            "gateway_request_duration_seconds",
            "Inference request, body read to last byte",
            REQUEST_BUCKETS_S,
            by_adapter,
        )
        self.first_token = r.histogram(
            "gateway_time_to_first_token_seconds",
            "Streamed request, body read to first token",
            REQUEST_BUCKETS_S,
            by_adapter,
        )
        self.between_tokens = r.histogram(
            "gateway_inter_token_latency_seconds", "Streamed request, token to token", TOKEN_BUCKETS_S, by_adapter
        )
        self.overhead = r.histogram(
            "gateway_overhead_seconds",
            "The gateway's own work on one request: reading, checking, relabelling; without waiting",
            OVERHEAD_BUCKETS_S,
        )


class Gateway:
    """Metrics of the gateway itself: version, reference, policy, last audit."""

    def __init__(self, r: Registry) -> None:
        self.build = r.info("gateway_build_info", "Version of the gateway")
        self.reference = r.info("gateway_reference_info", "Reference in force")
        self.policy = r.info("gateway_policy_info", "Policy in force")
        self.tau = r.gauge(
            "gateway_policy_tau", "Modules with an E-DIEM above this are condemned, interquartile ranges"
        )
        self.broken = r.gauge(
            "gateway_audit_broken_invariants", "Invariants the last audit found broken; NaN before the first audit"
        )
        self.audited = r.gauge(
            "gateway_audit_timestamp_seconds", "When the last audit ended, Unix time; NaN before the first audit"
        )
        self.broken.set(float("nan"))
        self.audited.set(float("nan"))
