"""Traffic by adapter: requests and tokens since the gateway started, read from the counters of the metrics."""

from collections import Counter
from dataclasses import dataclass

import prometheus_client

from app.observe.adapter_label import OTHER, SERVED_MODEL


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests, and tokens in and out together."""

    requests: float = 0
    tokens: float = 0


class TrafficByAdapter:
    """Traffic of every label of the metrics at one moment."""

    def __init__(self, requests: prometheus_client.Counter, tokens: prometheus_client.Counter) -> None:
        """Read both counters, which have the label `adapter`."""
        self._requests, self._tokens = _sums(requests), _sums(tokens)

    def of(self, adapter: str) -> Traffic | None:
        """Return one adapter's traffic; None if it may be among those that are counted together."""
        if adapter not in self._requests and OTHER in self._requests:
            return None
        return Traffic(self._requests[adapter], self._tokens[adapter])

    @property
    def served_model(self) -> Traffic:
        """Traffic of the served model itself."""
        return Traffic(self._requests[SERVED_MODEL], self._tokens[SERVED_MODEL])


def _sums(counter: prometheus_client.Counter) -> Counter[str]:
    """Return the counter's value for each adapter, over all its other labels."""
    sums: Counter[str] = Counter()
    for metric in counter.collect():
        for sample in metric.samples:
            sums[sample.labels["adapter"]] += sample.value  # type: ignore[assignment]  # floats add up as well
    return sums
