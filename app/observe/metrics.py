"""Every metric this gateway exports, with its unit. Base units, no colons, adapter labels only for known adapters."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from app import __version__
from app.errors import GatewayError, Stage

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

STAGE_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: from a compact screening (milliseconds) to a 7B upload over a slow line (minutes)."""

REQUEST_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds of one inference request, first byte in to last byte out."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter, which nobody asked for

SERVED_MODEL: Final = "(served model)"
"""Label of requests to the served model itself; no adapter can be called so."""


class Labelled(Protocol):
    """What a request is counted under."""

    @property
    def adapter(self) -> str | None:
        """The adapter's name; None for the served model itself."""


class Metrics:
    """One process's metrics in a registry of their own, so that two gateways in one process do not mix."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.uploads = Counter("gateway_uploads", "Uploads by what became of them", ["outcome"], registry=r)
        self.rejected = Counter("gateway_rejected", "Refusals by stage and code", ["stage", "code"], registry=r)
        self.modules = Counter("gateway_modules", "Screened modules by decision", ["decision"], registry=r)
        self.adapter_modules = Gauge(
            "gateway_adapter_modules", "Modules of an adapter's active version", ["adapter", "decision"], registry=r
        )
        self.stage_seconds = Histogram(
            "gateway_stage_duration_seconds", "Time in one stage", ["stage"], registry=r, buckets=STAGE_BUCKETS_S
        )
        self.adapters_ready = Gauge("gateway_adapters_ready", "Adapters whose active version is served", registry=r)
        self.versions_pending = Gauge("gateway_versions_pending", "Stored versions the engine lacks", registry=r)
        self.engine_up = Gauge("gateway_engine_up", "1 while the engine answers, else 0", registry=r)
        self.requests = Counter(
            "gateway_requests", "Inference requests by adapter and status", ["adapter", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "gateway_request_duration_seconds",
            "Inference request, first byte in to last byte out",
            ["adapter"],
            registry=r,
            buckets=REQUEST_BUCKETS_S,
        )
        self.first_chunk_seconds = Histogram(
            "gateway_time_to_first_chunk_seconds",
            "Streamed request, body read to first chunk",
            ["adapter"],
            registry=r,
            buckets=REQUEST_BUCKETS_S,
        )
        self.tokens = Counter(
            "gateway_tokens", "Tokens by adapter and kind (prompt, completion)", ["adapter", "kind"], registry=r
        )
        self.build = Info("gateway_build", "Version of the gateway", registry=r)
        self.build.info({"version": __version__})
        self.screening = Info("gateway_screening", "Reference and policy in force", registry=r)
        for stage in Stage:  # present from the first scrape on, so that rates have a start
            if stage is not Stage.DOOR:
                self.stage_seconds.labels(stage.value)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time one stage, whether it succeeds or not."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds.labels(stage.value).observe(time.monotonic() - start)

    def refused(self, error: GatewayError) -> None:
        """Count one refusal."""
        self.rejected.labels(error.code.stage.value, error.code.name).inc()

    def show_adapters(self, counts: Mapping[str, tuple[int, int]], pending: int) -> None:
        """Replace the per-adapter gauges: name → (kept, pruned) of its active version."""
        self.adapter_modules.clear()
        for name, (kept, pruned) in counts.items():
            self.adapter_modules.labels(name, "keep").set(kept)
            self.adapter_modules.labels(name, "prune").set(pruned)
        self.adapters_ready.set(len(counts))
        self.versions_pending.set(pending)

    # ---- one inference request (serve's hooks) ---------------------------------------------------------------------

    def answered(self, target: "Labelled", status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """A request is over. seconds: since its body was read; usage: OpenAI's token counts."""
        name = target.adapter or SERVED_MODEL
        self.requests.labels(name, str(status)).inc()
        self.request_seconds.labels(name).observe(seconds)
        self.stage_seconds.labels(Stage.SERVE.value).observe(seconds)
        for kind in ("prompt", "completion"):
            count = (usage or {}).get(f"{kind}_tokens")
            if isinstance(count, int) and count > 0:
                self.tokens.labels(name, kind).inc(count)

    def first_chunk(self, target: "Labelled", seconds: float) -> None:
        """The first chunk of a stream arrived."""
        self.first_chunk_seconds.labels(target.adapter or SERVED_MODEL).observe(seconds)

    def forget(self, adapter: str) -> None:
        """Drop the series of an adapter that is gone: names are strangers', and must not pile up."""
        for metric in (self.requests, self.request_seconds, self.first_chunk_seconds, self.tokens):
            metric.remove_by_labels({"adapter": adapter})

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return generate_latest(self.registry)
