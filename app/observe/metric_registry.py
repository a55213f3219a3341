"""Declaration of metrics (name with its unit, help, labels), and a list of all of them for docs/operating.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # else every counter has a second series, `_created`


@dataclass(frozen=True, slots=True)
class Declared:
    """Metric as docs/operating.md shows it. kind: counter, gauge, histogram or info."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


class Registry:
    """Metrics declared under the exact names Prometheus sees, in a collector registry of their own."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self.declared: list[Declared] = []

    def counter(self, name: str, help_: str, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter: a number that only grows; its name ends in `_total`."""
        self._declare(name, "counter", help_, labels)
        return Counter(name.removesuffix("_total"), help_, labels, registry=self.collector)

    def gauge(self, name: str, help_: str, labels: Sequence[str] = ()) -> Gauge:
        """Declare a gauge: a number that goes up and down."""
        self._declare(name, "gauge", help_, labels)
        return Gauge(name, help_, labels, registry=self.collector)

    def histogram(self, name: str, help_: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        """Declare a histogram: a distribution, counted in buckets."""
        self._declare(name, "histogram", help_, labels)
        return Histogram(name, help_, labels, registry=self.collector, buckets=buckets)

    def info(self, name: str, help_: str) -> Info:
        """Declare an info metric: text as labels of a series with the value 1; its name ends in `_info`."""
        self._declare(name, "info", help_, ())
        return Info(name.removesuffix("_info"), help_, registry=self.collector)

    def _declare(self, name: str, kind: str, help_: str, labels: Sequence[str]) -> None:
        self.declared.append(Declared(name, kind, help_, tuple(labels)))
