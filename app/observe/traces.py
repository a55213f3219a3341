"""OpenTelemetry traces of requests, if a collector is configured and the `otel` extra is installed; otherwise inactive.

A span carries adapter, version, digest, request id and outcome. Never a prompt, answer or key.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from app import __version__
from app.domain.errors import Stage
from app.observe.log import event
from app.observe.request_id import REQUEST_ID

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

PREFIX: Final = "gateway."
"""Prefix of every attribute that the gateway defines itself."""

EXPORT_S: Final = 5
"""Longest delivery to the collector, seconds; only the exporter's own thread waits for it."""

OK: Final = frozenset({"ok", "200"})
"""Outcomes of a stage that succeeded."""


class Traces:
    """Tracer of one gateway, with its exporter. Without a provider every method does nothing."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lora-gateway", __version__) if provider else None

    def close(self) -> None:
        """Export the spans still waiting, for a few seconds at most, and stop."""
        if self._provider is not None:
            self._provider.shutdown()

    @contextmanager
    def request(self, method: str) -> Iterator["Span | None"]:
        """Open the span of one HTTP request, parent of the spans of its stages; None if inactive. See `answered`."""
        if self._tracer is None:
            yield None
            return
        from opentelemetry.trace import SpanKind

        given = {"http.request.method": method, f"{PREFIX}request": REQUEST_ID.get() or ""}
        with self._tracer.start_as_current_span(method, kind=SpanKind.SERVER, attributes=given) as span:
            yield span

    def stage(self, stage: Stage, seconds: float, outcome: str, fields: Mapping[str, object]) -> None:
        """Record a stage that ended just now and took this many seconds."""
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        end = time.time_ns()
        known = {"request": REQUEST_ID.get(), **fields, "outcome": outcome}
        attributes = {f"{PREFIX}{key}": value for key, value in known.items() if isinstance(value, str | int | float)}
        kind = SpanKind.CLIENT if stage in (Stage.LOAD, Stage.SERVE) else SpanKind.INTERNAL
        start = end - round(seconds * 1e9)
        span = self._tracer.start_span(stage.value, kind=kind, attributes=attributes, start_time=start)
        if outcome not in OK:
            span.set_status(Status(StatusCode.ERROR, outcome))
        span.end(end)


NO_TRACES: Final = Traces()


def answered(span: "Span | None", method: str, route: str | None, status: int) -> None:
    """Record in a request's span how it was answered. route: the path's template, which names no adapter."""
    if span is None:
        return
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR))


def open_traces(endpoint: str | None) -> Traces:
    """Return traces to the collector at this OTLP/HTTP base URL (`http://host:4318`).

    Inactive traces if it is None or OpenTelemetry is not installed.
    """
    if endpoint is None:
        return NO_TRACES
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        event("no_traces", logging.WARNING, why="OpenTelemetry is not installed: pip install 'lora-gateway[otel]'")
        return NO_TRACES
    event("traces", endpoint=endpoint)
    return traces_to(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S))


def traces_to(exporter: "SpanExporter") -> Traces:
    """Return traces to any exporter, in batches. The provider is not global: two gateways in one process do not mix."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "lora-gateway", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider)
