"""Recording of roll-outs' metrics by version. They exist while the roll-out does, for a bounded number of adapters."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from prometheus_client import Counter, Gauge, Histogram

from app.domain.rollout import Rollout
from app.domain.usage import one_request
from app.observe.adapter_label import OTHER
from app.observe.metric_definitions import Rollouts
from app.observe.metric_registry import Registry

MAX_ROLLOUTS: Final = 20
"""Most adapters with series of their own during a roll-out, of at most eight versions each; others share `(other)`."""

DROPPED: Final = ("busy", "too_many")
"""Reasons why a copy of a request is not sent to the shadow: the engine has others to answer; too many are under way."""

ENDED: Final = ("promoted", "aborted", "guard")
"""Ends of a roll-out. guard: it aborted by itself."""

FAILED: Final = 500
CLIENT_GONE: Final = 499
OK: Final = 200


@dataclass(frozen=True, slots=True)
class Seen:
    """Requests of one version in one part, through this gateway since the version has one. seconds: all together."""

    requests: float = 0
    failed: float = 0
    seconds: float = 0

    @property
    def mean_s(self) -> float | None:
        """Mean duration of a request, seconds; None if there was none."""
        return self.seconds / self.requests if self.requests else None


class InRollout(Protocol):
    """Version that a request of a roll-out is counted under."""

    @property
    def adapter(self) -> str | None:
        """Name of the adapter."""

    @property
    def version(self) -> int | None:
        """Number of its version."""

    @property
    def part(self) -> str | None:
        """Part that the version plays: live or shadow."""


class RolloutMetrics:
    """Metrics of roll-outs. Thread-safe."""

    def __init__(self, registry: Registry, limit: int = MAX_ROLLOUTS) -> None:
        self._metrics = Rollouts(registry)
        self._limit = limit
        self._shown: Mapping[str, frozenset[int]] = {}  # adapter → versions that have series
        self._lock = threading.Lock()  # a late request must not recreate series that were removed
        for reason in DROPPED:
            self._metrics.dropped.labels(reason)
        for how in ENDED:
            self._metrics.ended.labels(how)

    def show(self, rollouts: Mapping[str, Rollout]) -> None:
        """Set the weights to those in force, and remove the series of versions that have no part any more."""
        with self._lock:
            kept = [name for name in self._shown if name in rollouts]
            named = [*kept, *(name for name in rollouts if name not in self._shown)][: self._limit]
            shown = {name: rollouts[name].versions for name in named}
            for name, numbers in self._shown.items():
                for number in numbers - shown.get(name, frozenset()):
                    self._remove(name, number)
            for name in named:
                for number in shown[name]:
                    weight = rollouts[name].weights.get(number, 0)
                    self._metrics.weight.labels(name, str(number)).set(weight)
            self._shown = shown

    def answered(self, target: InRollout, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Record a finished request. seconds: since its body was read; usage: OpenAI's token counts."""
        with self._lock:
            labels = self._labels(target)
            self._metrics.answered.labels(*labels, result_of(status)).inc()
            self._metrics.seconds.labels(*labels).observe(seconds)
            if count := one_request(usage).completion_tokens:
                self._metrics.tokens.labels(*labels).inc(count)

    def first_token(self, target: InRollout, seconds: float) -> None:
        """Record the first token of a stream. seconds: since the request's body was read."""
        with self._lock:
            self._metrics.first_token.labels(*self._labels(target)).observe(seconds)

    def seen(self, adapter: str) -> Mapping[tuple[str, str], Seen]:
        """Return (version, part) → requests of an adapter's roll-out."""
        found: dict[tuple[str, str], Seen] = {}
        for metric in (*self._metrics.answered.collect(), *self._metrics.seconds.collect()):
            for sample in metric.samples:
                labels = sample.labels
                if labels["adapter"] != adapter:
                    continue
                at = (labels["version"], labels["part"])
                one = found.get(at, Seen())
                if sample.name.endswith("_seconds_sum"):
                    found[at] = replace(one, seconds=sample.value)
                elif "result" in labels:
                    failed = one.failed + sample.value * (labels["result"] == "failed")
                    found[at] = replace(one, requests=one.requests + sample.value, failed=failed)
        return found

    def shadow_dropped(self, reason: str) -> None:
        """Count a copy of a request that was not sent. reason: one of DROPPED."""
        self._metrics.dropped.labels(reason).inc()

    def over(self, how: str) -> None:
        """Count a roll-out that this gateway ended. how: one of ENDED."""
        self._metrics.ended.labels(how).inc()

    def _labels(self, target: InRollout) -> tuple[str, str, str]:
        adapter, version = target.adapter or "", target.version or 0
        known = version in self._shown.get(adapter, frozenset())
        return (adapter, str(version), str(target.part)) if known else (OTHER, OTHER, str(target.part))

    def _remove(self, name: str, number: int) -> None:
        m = self._metrics
        by_version: tuple[Counter | Gauge | Histogram, ...] = (m.weight, m.answered, m.seconds, m.first_token, m.tokens)
        for metric in by_version:
            metric.remove_by_labels({"adapter": name, "version": str(number)})


def result_of(status: int) -> str:
    """Return the label of a request that ended with this status."""
    if status == OK:
        return "ok"
    if status == CLIENT_GONE:
        return "client_gone"
    return "failed" if status >= FAILED else "refused"
