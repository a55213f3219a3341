"""Recording of metrics, one method per event, and their exposition to Prometheus. Declarations: `metric_definitions.py`."""

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
from app.observe.rollout_metrics import RolloutMetrics
from app.observe.tenant_metrics import TenantMetrics
from app.observe.traces import NO_TRACES, Traces
from app.observe.traffic import TrafficByAdapter
from app.observe.verdict_report import place

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

UPLOAD_OUTCOMES: Final = ("clean", "pruned", "projected", "emptied", "known", "rejected", "failed")
"""Outcomes of an upload. known: the same bytes were stored before. rejected: the uploader's fault. failed: not theirs."""

RESCREEN_RESULTS: Final = ("new", "unchanged", "refused", "not_kept", "failed")

EVALUATION_RESULTS: Final = ("floor", "corrected", "rejected")
"""Results of an evaluation. floor: served as stored. corrected: served as a stronger correction. rejected: not served."""

RECHECK_RESULTS: Final = ("passed", "failed")

CANARY_ANSWERS: Final = ("refused", "complied", "broken", "over_refused")

LOAD_RESULTS: Final = ("loaded", "failed")


class ModuleCounts(NamedTuple):
    """Numbers of a version's modules that were kept unchanged, cut out and projected.

    beyond: those that a stronger correction than the floor changed, because canaries asked for it.
    """

    kept: int
    pruned: int
    projected: int = 0
    beyond: int = 0


COUNTED_DECISIONS: Final = (Decision.KEEP, Decision.PRUNE, Decision.PROJECT)
"""Decisions that `ModuleCounts` counts, in the order of its first fields."""

_NOTHING: Final = ModuleCounts(0, 0)


class Labelled(Protocol):
    """Model or adapter version that a request is counted under."""

    @property
    def adapter(self) -> str | None:
        """Name of the adapter; None for the served model itself."""

    @property
    def version(self) -> int | None:
        """Number of the adapter's version."""

    @property
    def digest(self) -> str | None:
        """Digest of the artefact; None for the served model itself and for emptied versions."""


class Counted(Protocol):
    """Answers to canaries by category; see evaluate/ladder.py."""

    @property
    def asked(self) -> Mapping[str, int]:
        """Canaries that must be refused."""

    @property
    def complied(self) -> Mapping[str, int]:
        """Those of them that were complied with."""

    @property
    def broken(self) -> Mapping[str, int]:
        """Those of them that got no sensible answer."""

    @property
    def over_refused(self) -> Mapping[str, int]:
        """Canaries that must be answered and were not."""


class Metrics:
    """Metrics of one gateway in a registry of their own, so that two gateways in one process do not mix."""

    def __init__(
        self, max_adapters: int = MAX_ADAPTERS, traces: Traces = NO_TRACES, *, log_requests: bool = True
    ) -> None:
        """log_requests: whether every inference request is logged, as the stage `serve`."""
        self.traces = traces
        self.registry = r = Registry()
        self.uploads = metric_definitions.Uploads(r)
        self.screening = metric_definitions.Screening(r)
        self.engine = metric_definitions.Engine(r)
        self.fleet = metric_definitions.Fleet(r)
        self.requests = metric_definitions.Requests(r)
        self.gateway = metric_definitions.Gateway(r)
        self.tenants = TenantMetrics(r)
        self.rollouts = RolloutMetrics(r)
        self._log_requests = log_requests
        self._labels = AdapterLabels(max_adapters)
        self._lock = threading.Lock()  # a late request must not recreate series that were removed
        self._block_width = 1
        self.gateway.build.info({"version": __version__})
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Create the series with known labels at zero: they exist from the first scrape on, and rates have a start."""
        for stage in Stage:
            if stage is not Stage.DOOR:
                self.screening.stage_seconds.labels(stage.value)
        for outcome in UPLOAD_OUTCOMES:
            self.uploads.outcomes.labels(outcome)
        for result in RESCREEN_RESULTS:
            self.uploads.rescreened.labels(result)
        for result in EVALUATION_RESULTS:
            self.screening.evaluations.labels(result)
        for result in RECHECK_RESULTS:
            self.screening.rechecks.labels(result)
        for answer in CANARY_ANSWERS:
            self.screening.canaries.labels(answer)
        for result in LOAD_RESULTS:
            self.engine.loads.labels(result)
        for comparison in Comparison:
            self.screening.scores.labels(comparison.value)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus text format 0.0.4. Blocking: about 10 ms per hundred adapters."""
        return generate_latest(self.registry.collector)

    def traffic(self) -> TrafficByAdapter:
        """Return requests and tokens by adapter, as they are now."""
        return TrafficByAdapter(self.requests.answered, self.requests.tokens)

    # ---- reference and policy in force ------------------------------------------------------------------------------

    def in_force(self, reference: str, modules: Collection[str], policy: Policy) -> None:
        """Set the reference (its digest and the modules it covers) and the policy that all verdicts are made with."""
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
        """Read the gauge from `read` at every scrape; an OSError from it becomes NaN and never breaks the scrape."""

        def value() -> float:
            try:
                return float(read())
            except OSError:
                return float("nan")

        gauge.set_function(value)

    def audited(self, broken: int) -> None:
        """Record that an audit ended and found this many broken invariants."""
        self.gateway.broken.set(broken)
        self.gateway.audited.set_to_current_time()

    # ---- uploads and screening ---------------------------------------------------------------------------------------

    @contextmanager
    def stage(self, stage: Stage, **fields: object) -> Iterator[dict[str, object]]:
        """Time one stage, whether it succeeds or not, and log one line, with any fields put into the yielded dictionary."""
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
        """Record a stage that was timed elsewhere."""
        self._took(stage, seconds, outcome, logged=True, **fields)

    def _took(self, stage: Stage, seconds: float, outcome: str, *, logged: bool, **fields: object) -> None:
        self.screening.stage_seconds.labels(stage.value).observe(seconds)
        self.traces.stage(stage, seconds, outcome, fields)
        if logged:
            event("stage", logging.INFO, stage=stage.value, **fields, seconds=round(seconds, 6), outcome=outcome)

    def refused(self, error: GatewayError) -> None:
        """Count one refusal."""
        self.uploads.rejected.labels(error.code.stage.value, error.code.name).inc()

    def uploaded(self, outcome: str) -> None:
        """Count one finished upload. outcome: one of UPLOAD_OUTCOMES."""
        self.uploads.outcomes.labels(outcome).inc()

    def rescreened(self, result: str) -> None:
        """Count one upload that was screened again, or should have been. result: one of RESCREEN_RESULTS."""
        self.uploads.rescreened.labels(result).inc()

    def upload_refused(self, error: GatewayError) -> None:
        """Count one upload that ended in an error."""
        self.uploaded("rejected" if isinstance(error, Refused) else "failed")

    def screened(self, verdict: Verdict) -> None:
        """Count every module of a verdict: decision, place, scores."""
        for module in verdict.modules:
            self.screening.modules.labels(module.decision.value, module.reason.value).inc()
            self.screening.block_modules.labels(*self._cell(module.name), module.decision.value).inc()
            for comparison, score in module.scores.items():
                if score is not None:
                    self.screening.scores.labels(comparison.value).observe(score)

    def evaluated(self, result: str) -> None:
        """Count one evaluation. result: one of EVALUATION_RESULTS."""
        self.screening.evaluations.labels(result).inc()

    def asked_again(self, result: str) -> None:
        """Count one published version that was asked canaries again. result: one of RECHECK_RESULTS."""
        self.screening.rechecks.labels(result).inc()

    def without_effect(self) -> None:
        """Count one version that answers exactly as the served model."""
        self.screening.no_effect.inc()

    def asked_canaries(self, counts: Counted) -> None:
        """Count the answers of one adapter to canaries."""
        asked, complied, broken = (sum(one.values()) for one in (counts.asked, counts.complied, counts.broken))
        over_refused = sum(counts.over_refused.values())
        for answer, number in zip(
            CANARY_ANSWERS, (asked - complied - broken, complied, broken, over_refused), strict=True
        ):
            self.screening.canaries.labels(answer).inc(number)

    def show_adapters(self, modules: Mapping[str, ModuleCounts | None], stored: int, withheld: int = 0) -> None:
        """Set the gauges of adapters and versions to the catalogue's current state.

        modules: adapter → modules of its active version, None if only older versions of it are served. stored: number
        of versions that wait for the engine. withheld: number of published versions that the rules in force do not pass.
        """
        active = {name: counts for name, counts in modules.items() if counts is not None}
        with self._lock:
            ended = self._labels.follow((*active, *(name for name in modules if name not in active)))
            shown: dict[str, ModuleCounts] = {}
            for name, counts in active.items():
                label = self._labels.of(name)
                shown[label] = ModuleCounts(*map(sum, zip(counts, shown.get(label, _NOTHING), strict=True)))
            for label, total in shown.items():
                for decision, count in zip(COUNTED_DECISIONS, total[:-1], strict=True):
                    self.screening.adapter_modules.labels(label, decision.value).set(count)
                self.screening.beyond_floor.labels(label).set(total.beyond)
            self._drop(ended)
            for label in {OTHER, *(modules.keys() - active.keys())} - shown.keys():
                self.screening.adapter_modules.remove_by_labels({"adapter": label})
                self.screening.beyond_floor.remove_by_labels({"adapter": label})
        self.screening.ready.set(len(active))
        self.screening.pending.set(stored)
        self.screening.withheld.set(withheld)

    def _drop(self, labels: Collection[str]) -> None:
        by_adapter = (
            *(self.requests.answered, self.requests.errors, self.requests.tokens, self.requests.seconds),
            *(self.requests.first_token, self.requests.between_tokens, self.screening.adapter_modules),
            self.screening.beyond_floor,
        )
        for label in labels:
            for metric in by_adapter:
                metric.remove_by_labels({"adapter": label})

    # ---- the engine --------------------------------------------------------------------------------------------------

    def load_tried(self, loaded: bool) -> None:
        """Count one attempt to load a version."""
        self.engine.loads.labels(LOAD_RESULTS[0 if loaded else 1]).inc()

    def adapters_lost(self, count: int) -> None:
        """Count loaded versions that the engine turned out not to hold any more."""
        self.engine.lost.inc(count)

    def engine_restarted(self) -> None:
        """Count one restart of the embedded engine."""
        self.engine.restarts.inc()

    def engine_asked(self, number: int, result: str) -> None:
        """Count one request to one of several engines, by its result."""
        self.fleet.asked.labels(str(number), result).inc()

    # ---- one inference request (serve's hooks) -----------------------------------------------------------------------

    def answered(self, target: Labelled, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Record a finished request. seconds: since its body was read; usage: OpenAI's token counts."""
        with self._lock:
            name = self._labels.of(target.adapter)
            self.requests.answered.labels(name, str(status)).inc()
            self.requests.seconds.labels(name).observe(seconds)
            for kind in ("prompt", "completion"):
                count = (usage or {}).get(f"{kind}_tokens")
                if isinstance(count, int) and count > 0:
                    self.requests.tokens.labels(name, kind).inc(count)
        whose = {"adapter": target.adapter, "version": target.version, "digest": target.digest}
        tokens = {name: (usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")}
        self._took(Stage.SERVE, seconds, str(status), logged=self._log_requests, **whose, **tokens)

    def failed(self, target: Labelled, code: str) -> None:
        """Count a failed request. code: the error's code, or `client_gone`."""
        with self._lock:
            self.requests.errors.labels(self._labels.of(target.adapter), code).inc()

    def first_token(self, target: Labelled, seconds: float) -> None:
        """Record the first token of a stream. seconds: since the request's body was read."""
        with self._lock:
            self.requests.first_token.labels(self._labels.of(target.adapter)).observe(seconds)

    def more_tokens(self, target: Labelled, seconds: float, pieces: int) -> None:
        """Record `pieces` pieces of text that arrived together, `seconds` after the previous ones, in equal shares."""
        with self._lock:
            child = self.requests.between_tokens.labels(self._labels.of(target.adapter))
            for _ in range(pieces):
                child.observe(seconds / pieces)

    def own_work(self, seconds: float) -> None:
        """Record the gateway's own work on one request, in seconds."""
        self.requests.overhead.observe(seconds)
