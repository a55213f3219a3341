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
        self.outcomes = r.counter("gateway_uploads_total", "Uploads by outcome", ["outcome"])
        self.rescreened = r.counter(
            "gateway_rescreens_total",
            "Kept uploads that were screened again, by result (new versions also count as uploads)",
            ["result"],
        )
        self.rejected = r.counter("gateway_rejected_total", "Refusals by stage and code", ["stage", "code"])
        self.in_progress = r.gauge("gateway_uploads_in_progress", "Uploads that are being received or screened")
        self.screening = r.gauge("gateway_versions_in_progress", "Versions between the stages validate and store")
        self.quarantine_files = r.gauge("gateway_quarantine_files", "Files in the quarantine")
        self.quarantine_bytes = r.gauge("gateway_quarantine_bytes", "Bytes in the quarantine")
        self.store_free = r.gauge("gateway_store_free_bytes", "Free bytes of the file system that holds the artefacts")
        self.store_size = r.gauge("gateway_store_size_bytes", "Total bytes of the file system that holds the artefacts")
        self.store_reserve = r.gauge("gateway_store_reserve_bytes", "Free bytes below which uploads are refused")


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
            "gateway_module_score", "E-DIEM of screened modules, in interquartile ranges", SCORE_BUCKETS, ["comparison"]
        )
        self.stage_seconds = r.histogram(
            "gateway_stage_duration_seconds",
            "Time in one stage, whether it succeeded or not",
            STAGE_BUCKETS_S,
            ["stage"],
        )
        self.adapter_modules = r.gauge(
            "gateway_adapter_modules", "Modules of an adapter's active version, by decision", ["adapter", "decision"]
        )
        self.beyond_floor = r.gauge(
            "gateway_adapter_modules_beyond_floor",
            "Modules of an adapter's active version changed by a stronger correction than the floor, which canaries asked "
            "for; 0 where they asked for none",
            ["adapter"],
        )
        self.evaluations = r.counter(
            "gateway_evaluations_total", "Evaluations on canaries that came to an end, by result", ["result"]
        )
        self.rechecks = r.counter(
            "gateway_canary_rechecks_total", "Published versions that were asked canaries again, by result", ["result"]
        )
        self.withheld = r.gauge("gateway_versions_withheld", "Published versions that the rules in force do not pass")
        self.no_effect = r.counter(
            "gateway_versions_without_effect_total", "Evaluated versions that answer exactly as the served model"
        )
        self.canaries = r.counter(
            "gateway_canaries_total",
            "Canaries asked of adapters, by how they were answered (over_refused: an answer was expected)",
            ["answer"],
        )
        self.ready = r.gauge("gateway_adapters_ready", "Adapters whose active version is served")
        self.pending = r.gauge("gateway_versions_pending", "Stored versions that wait for the engine")


class Engine:
    """Metrics of the engine: availability, adapters held and desired, loads."""

    def __init__(self, r: Registry) -> None:
        self.up = r.gauge("gateway_engine_up", "1 while the engine answers, else 0")
        self.resident = r.gauge(
            "gateway_engine_adapters", "Versions that are verified, loaded and probed in the engine"
        )
        self.desired = r.gauge("gateway_engine_adapters_desired", "Versions that the engine should hold")
        self.failing = r.gauge("gateway_engine_adapters_failing", "Versions that did not load at the last try")
        self.loads = r.counter("gateway_engine_loads_total", "Tries to load a version, by result", ["result"])
        self.lost = r.counter(
            "gateway_engine_adapters_lost_total", "Loaded versions that the engine was found to have forgotten"
        )
        self.restarts = r.counter("gateway_engine_restarts_total", "Restarts of the embedded engine")


class Fleet:
    """Metrics of several engines behind one gateway; no series with a single engine.

    Label engine: the engine's position in GATEWAY_ENGINE_URL, from 1; if DNS lists the engines, the lowest number that
    was free when the engine appeared.
    """

    def __init__(self, r: Registry) -> None:
        by_engine = ["engine"]
        self.up = r.gauge(
            "gateway_fleet_engine_up", "With several engines: 1 while this engine answers, else 0", by_engine
        )
        self.resident = r.gauge(
            "gateway_fleet_engine_adapters",
            "With several engines: versions that are loaded and probed in this engine",
            by_engine,
        )
        self.in_flight = r.gauge(
            "gateway_fleet_engine_requests_in_flight",
            "With several engines: requests in flight on this engine",
            by_engine,
        )
        self.asked = r.counter(
            "gateway_fleet_engine_requests_total",
            "With several engines: requests to this engine, by result (unreached and forgotten ones go on to "
            "another engine)",
            ["engine", "result"],
        )


class Tenants:
    """Metrics of tenants: what their requests used, and what their limits refused."""

    def __init__(self, r: Registry) -> None:
        self.answered = r.counter(
            "gateway_tenant_requests_total", "Inference requests that an engine took, by tenant of the key", ["tenant"]
        )
        self.tokens = r.counter(
            "gateway_tenant_tokens_total",
            "Tokens by tenant of the key and kind (prompt, completion; cached ones are prompt tokens as well)",
            ["tenant", "kind"],
        )
        self.limited = r.counter(
            "gateway_tenant_limited_total", "Requests that a tenant's limit refused, by limit", ["tenant", "limit"]
        )
        self.webhooks = r.counter(
            "gateway_webhook_messages_total",
            "Tries to send a message to a webhook, by result (delivered, failed: it is tried again, given_up)",
            ["result"],
        )


class Requests:
    """Metrics of inference requests: counts, errors, tokens, latencies."""

    def __init__(self, r: Registry) -> None:
        by_adapter = ["adapter"]
        self.answered = r.counter(
            "gateway_requests_total", "Inference requests by adapter and status", ["adapter", "status"]
        )
        self.errors = r.counter(
            "gateway_request_errors_total", "Failed inference requests by adapter and code", ["adapter", "code"]
        )
        self.tokens = r.counter(
            "gateway_tokens_total", "Tokens by adapter and kind (prompt, completion)", ["adapter", "kind"]
        )
        self.seconds = r.histogram(
            "gateway_request_duration_seconds",
            "Duration of an inference request, from body read to last byte",
            REQUEST_BUCKETS_S,
            by_adapter,
        )
        self.first_token = r.histogram(
            "gateway_time_to_first_token_seconds",
            "Time to the first token of a streamed request, from body read",
            REQUEST_BUCKETS_S,
            by_adapter,
        )
        self.between_tokens = r.histogram(
            "gateway_inter_token_latency_seconds",
            "Time from token to token of a streamed request",
            TOKEN_BUCKETS_S,
            by_adapter,
        )
        self.overhead = r.histogram(
            "gateway_overhead_seconds",
            "The gateway's own work on one request (reading, checking, relabelling), without waiting",
            OVERHEAD_BUCKETS_S,
        )


class Rollouts:
    """Metrics of roll-outs, by version; no series without one.

    Label part: live requests, or copies for a shadow, whose answers nobody gets.
    """

    def __init__(self, r: Registry) -> None:
        by_version = ["adapter", "version", "part"]
        self.weight = r.gauge(
            "gateway_rollout_weight",
            "During a roll-out: per cent of the conversations that a version gets",
            ["adapter", "version"],
        )
        self.answered = r.counter(
            "gateway_rollout_requests_total",
            "During a roll-out: requests by version, part (live, shadow) and result (ok, refused, failed, client_gone)",
            [*by_version, "result"],
        )
        self.seconds = r.histogram(
            "gateway_rollout_request_duration_seconds",
            "During a roll-out: duration of a request, from body read to last byte",
            REQUEST_BUCKETS_S,
            by_version,
        )
        self.first_token = r.histogram(
            "gateway_rollout_time_to_first_token_seconds",
            "During a roll-out: time to the first token of a streamed request, from body read",
            REQUEST_BUCKETS_S,
            by_version,
        )
        self.tokens = r.counter(
            "gateway_rollout_completion_tokens_total", "During a roll-out: tokens that a version wrote", by_version
        )
        self.dropped = r.counter(
            "gateway_rollout_shadows_dropped_total",
            "Copies of requests that were not sent to a shadow, by reason (busy, too_many)",
            ["reason"],
        )
        self.ended = r.counter(
            "gateway_rollouts_ended_total",
            "Roll-outs that this gateway ended, by how (promoted, aborted, guard: by itself)",
            ["how"],
        )


class Gateway:
    """Metrics of the gateway itself: version, reference, policy, last audit."""

    def __init__(self, r: Registry) -> None:
        self.build = r.info("gateway_build_info", "Version of the gateway")
        self.reference = r.info("gateway_reference_info", "Reference in force")
        self.policy = r.info("gateway_policy_info", "Policy in force")
        self.tau = r.gauge("gateway_policy_tau", "E-DIEM above which a module is condemned, in interquartile ranges")
        self.broken = r.gauge(
            "gateway_audit_broken_invariants", "Broken invariants that the last audit found; NaN before the first audit"
        )
        self.audited = r.gauge(
            "gateway_audit_timestamp_seconds", "End of the last audit, Unix time; NaN before the first audit"
        )
        self.broken.set(float("nan"))
        self.audited.set(float("nan"))
