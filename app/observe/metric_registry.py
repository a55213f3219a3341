"""Declarations of metrics: name with its unit, help, labels; and the list of all, for docs/operating.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter, which nobody asked for


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as docs/operating.md shows it. kind: counter, gauge, histogram or info."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


class Registry:
    """Declares metrics under the very names Prometheus sees, in a registry of its own."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self.declared: list[Declared] = []

    def counter(self, name: str, help_: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows; its name ends in `_total`."""
        self._declare(name, "counter", help_, labels)
        return Counter(name.removesuffix("_total"), help_, labels, registry=self.collector)

    def gauge(self, name: str, help_: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down."""
        self._declare(name, "gauge", help_, labels)
        return Gauge(name, help_, labels, registry=self.collector)

    def histogram(self, name: str, help_: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        """A distribution, counted in buckets."""
        self._declare(name, "histogram", help_, labels)
        return Histogram(name, help_, labels, registry=self.collector, buckets=buckets)

    def info(self, name: str, help_: str) -> Info:
        """Words, as labels of a series that is 1; its name ends in `_info`."""
        self._declare(name, "info", help_, ())
        return Info(name.removesuffix("_info"), help_, registry=self.collector)

    def _declare(self, name: str, kind: str, help_: str, labels: Sequence[str]) -> None:
        self.declared.append(Declared(name, kind, help_, tuple(labels)))
