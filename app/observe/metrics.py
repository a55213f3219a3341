"""What the rooms tell the metrics, and what Prometheus is told. The metrics themselves stand on `metric_definitions.py`."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Final, NamedTuple, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from app import __version__
from app.domain.errors import GatewayError, Refused, Stage
from app.domain.policy import Comparison, Policy
from app.domain.verdict import Decision, Verdict
from app.observe import metric_definitions
from app.observe.adapter_label import MAX_ADAPTERS, OTHER, AdapterLabels
from app.observe.log import event
from app.observe.metric_registry import Registry
from app.observe.traces import NO_TRACES, Traces
from app.observe.verdict_report import place

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

UPLOAD_OUTCOMES: Final = ("clean", "pruned", "projected", "emptied", "known", "rejected", "failed")
"""known: these bytes were there already. rejected: the uploader's to mend. failed: ours to mend."""

RESCREEN_RESULTS: Final = ("new", "unchanged", "refused", "not_kept", "failed")

LOAD_RESULTS: Final = ("loaded", "failed")


class ModuleCounts(NamedTuple):
    """How many of a version's modules were kept whole, cut out, and projected."""

    kept: int
    pruned: int
    projected: int = 0


COUNTED_DECISIONS: Final = (Decision.KEEP, Decision.PRUNE, Decision.PROJECT)
"""The decisions `Fates` counts, in its order."""

_NOTHING: Final = ModuleCounts(0, 0)


class Labelled(Protocol):
    """What a request is counted under."""

    @property
    def adapter(self) -> str | None:
        """The adapter's name; None for the served model itself."""

    @property
    def version(self) -> int | None:
        """Its version."""

    @property
    def digest(self) -> str | None:
        """The artefact's digest; None for the served model itself and for emptied versions."""


class Metrics:
    """One gateway's metrics in a registry of their own, so that two gateways in one process do not mix."""

    def __init__(self, max_adapters: int = MAX_ADAPTERS, traces: Traces = NO_TRACES) -> None:
        self.traces = traces
        self.registry = r = Registry()
        self.uploads = metric_definitions.Uploads(r)
        self.screening = metric_definitions.Screening(r)
        self.engine = metric_definitions.Engine(r)
        self.fleet = metric_definitions.Fleet(r)
        self.requests = metric_definitions.Requests(r)
        self.gateway = metric_definitions.Gateway(r)
        self._labels = AdapterLabels(max_adapters)
        self._lock = threading.Lock()  # between a label's use and its end: or a late request would bring series back
        self._block_width = 1
        self.gateway.build.info({"version": __version__})
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Series that are there from the first scrape on, so that rates have a start."""
        for stage in Stage:
            if stage is not Stage.DOOR:
                self.screening.stage_seconds.labels(stage.value)
        for outcome in UPLOAD_OUTCOMES:
            self.uploads.outcomes.labels(outcome)
        for result in RESCREEN_RESULTS:
            self.uploads.rescreened.labels(result)
        for result in LOAD_RESULTS:
            self.engine.loads.labels(result)
        for comparison in Comparison:
            self.screening.scores.labels(comparison.value)

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4. Blocking: some 10 ms for each hundred adapters."""
        return generate_latest(self.registry.collector)

    # ---- what is in force ------------------------------------------------------------------------------------------

    def in_force(self, reference: str, modules: Collection[str], policy: Policy) -> None:
        """The reference (its digest and the modules it covers) and the policy all verdicts are made by."""
        self.gateway.reference.info({"digest": reference, "modules": str(len(modules))})
        settings = ((field.name, getattr(policy, field.name)) for field in fields(policy))
        self.gateway.policy.info({name: "none" if value is None else str(value) for name, value in settings})
        self.gateway.tau.set(policy.tau)
        self._block_width = max((len(str(place(module)[0])) for module in modules), default=1)
        for module in modules:
            block, kind = self._cell(module)
            for decision in Decision:
                self.screening.block_modules.labels(block, kind, decision.value)

    def _cell(self, module: str) -> tuple[str, str]:
        block, kind = place(module)
        return ("none" if block < 0 else str(block).zfill(self._block_width)), kind

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Ask `read` at every scrape; what it cannot find out just now (OSError) is NaN, and never breaks the scrape."""

        def value() -> float:
            try:
                return float(read())
            except OSError:
                return float("nan")

        gauge.set_function(value)

    def audited(self, broken: int) -> None:
        """An audit ended and found so many invariants broken."""
        self.gateway.broken.set(broken)
        self.gateway.audited.set_to_current_time()

    # ---- uploads and screening ---------------------------------------------------------------------------------------

    @contextmanager
    def stage(self, stage: Stage, **fields: object) -> Iterator[dict[str, object]]:
        """Time one stage, whether it succeeds or not, and log its one line; what is put into the dictionary joins it."""
        start, outcome = time.monotonic(), "ok"
        try:
            yield fields
        except GatewayError as error:
            outcome = error.code.name
            raise
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self.took(stage, time.monotonic() - start, outcome, **fields)

    def took(self, stage: Stage, seconds: float, outcome: str, **fields: object) -> None:
        """A stage that was timed elsewhere."""
        self.screening.stage_seconds.labels(stage.value).observe(seconds)
        self.traces.stage(stage, seconds, outcome, fields)
        event("stage", logging.INFO, stage=stage.value, **fields, seconds=round(seconds, 6), outcome=outcome)

    def refused(self, error: GatewayError) -> None:
        """Count one refusal."""
        self.uploads.rejected.labels(error.code.stage.value, error.code.name).inc()

    def uploaded(self, outcome: str) -> None:
        """One upload came to its end: one of UPLOAD_OUTCOMES."""
        self.uploads.outcomes.labels(outcome).inc()

    def rescreened(self, result: str) -> None:
        """One adapter's upload was screened again, or should have been: one of RESCREEN_RESULTS."""
        self.uploads.rescreened.labels(result).inc()

    def upload_refused(self, error: GatewayError) -> None:
        """One upload ended in an error."""
        self.uploaded("rejected" if isinstance(error, Refused) else "failed")

    def screened(self, verdict: Verdict) -> None:
        """Count every module of a verdict: decision, place, scores."""
        for module in verdict.modules:
            self.screening.modules.labels(module.decision.value, module.reason.value).inc()
            self.screening.block_modules.labels(*self._cell(module.name), module.decision.value).inc()
            for comparison, score in module.scores.items():
                if score is not None:
                    self.screening.scores.labels(comparison.value).observe(score)

    def show_adapters(self, modules: Mapping[str, ModuleCounts | None], stored: int) -> None:
        """The catalogue as it is now. modules: adapter → modules of its active version, None when only older versions of it
        are served; stored: versions that wait for the engine."""
        active = {name: counts for name, counts in modules.items() if counts is not None}
        with self._lock:
            gone = self._labels.follow((*active, *(name for name in modules if name not in active)))
            shown: dict[str, ModuleCounts] = {}
            for name, counts in active.items():
                label = self._labels.of(name)
                shown[label] = ModuleCounts(*map(sum, zip(counts, shown.get(label, _NOTHING), strict=True)))
            for label, total in shown.items():
                for decision, count in zip(COUNTED_DECISIONS, total, strict=True):
                    self.screening.adapter_modules.labels(label, decision.value).set(count)
            self._drop(gone)
            for label in {OTHER, *modules} - shown.keys():
                self.screening.adapter_modules.remove_by_labels({"adapter": label})
        self.screening.ready.set(len(active))
        self.screening.pending.set(stored)

    def _drop(self, labels: Collection[str]) -> None:
        by_adapter = (
            *(self.requests.answered, self.requests.errors, self.requests.tokens, self.requests.seconds),
            *(self.requests.first_token, self.requests.between_tokens, self.screening.adapter_modules),
        )
        for label in labels:
            for metric in by_adapter:
                metric.remove_by_labels({"adapter": label})

    # ---- the engine --------------------------------------------------------------------------------------------------

    def load_tried(self, loaded: bool) -> None:
        """A version was tried to load."""
        self.engine.loads.labels(LOAD_RESULTS[0 if loaded else 1]).inc()

    def adapters_lost(self, count: int) -> None:
        """The engine turned out to have forgotten so many loaded versions."""
        self.engine.lost.inc(count)

    def engine_restarted(self) -> None:
        """The embedded engine was started again."""
        self.engine.restarts.inc()

    def engine_asked(self, number: int, result: str) -> None:
        """What became of one request to one of several engines."""
        self.fleet.asked.labels(str(number), result).inc()

    # ---- one inference request (serve's hooks) -----------------------------------------------------------------------

    def answered(self, target: Labelled, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """A request is over. seconds: since its body was read; usage: OpenAI's token counts."""
        with self._lock:
            name = self._labels.of(target.adapter)
            self.requests.answered.labels(name, str(status)).inc()
            self.requests.seconds.labels(name).observe(seconds)
            for kind in ("prompt", "completion"):
                count = (usage or {}).get(f"{kind}_tokens")
                if isinstance(count, int) and count > 0:
                    self.requests.tokens.labels(name, kind).inc(count)
        whose = {"adapter": target.adapter, "version": target.version, "digest": target.digest}
        self.took(Stage.SERVE, seconds, str(status), **whose)

    def failed(self, target: Labelled, code: str) -> None:
        """A request failed. code: of the error, or `client_gone`."""
        with self._lock:
            self.requests.errors.labels(self._labels.of(target.adapter), code).inc()

    def first_token(self, target: Labelled, seconds: float) -> None:
        """The first token of a stream arrived."""
        with self._lock:
            self.requests.first_token.labels(self._labels.of(target.adapter)).observe(seconds)

    def more_tokens(self, target: Labelled, seconds: float, pieces: int) -> None:
        """`pieces` pieces of text arrived together, `seconds` after those before: each took its part of that time."""
        with self._lock:
            child = self.requests.between_tokens.labels(self._labels.of(target.adapter))
            for _ in range(pieces):
                child.observe(seconds / pieces)

    def own_work(self, seconds: float) -> None:
        """What the gateway itself did for one request, seconds."""
        self.requests.overhead.observe(seconds)
