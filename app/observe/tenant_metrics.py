"""Recording of tenants' metrics. Tenants are the operator's, and may be many: the number of labels is bounded."""

from typing import Final

from app.domain.tenant_limits import Flow
from app.domain.usage import Usage
from app.observe.adapter_label import OTHER
from app.observe.metric_definitions import Tenants
from app.observe.metric_registry import Registry

MAX_TENANTS: Final = 1000
"""Most tenants with series of their own, nine each at most; those that come later share `(other)`."""


class TenantMetrics:
    """Metrics of tenants. Used on the event loop."""

    def __init__(self, registry: Registry, limit: int = MAX_TENANTS) -> None:
        self._metrics = Tenants(registry)
        self._known: set[str] = set()
        self._limit = limit

    def used(self, tenant: str, usage: Usage) -> None:
        """Count what a request of the tenant used."""
        label = self._label(tenant)
        self._metrics.answered.labels(label).inc(usage.requests)
        for kind in ("prompt", "cached", "completion"):
            if count := getattr(usage, f"{kind}_tokens"):
                self._metrics.tokens.labels(label, kind).inc(count)

    def limited(self, tenant: str, flow: Flow) -> None:
        """Count a request that a limit of the tenant refused."""
        self._metrics.limited.labels(self._label(tenant), flow.value).inc()

    def webhook_sent(self, result: str) -> None:
        """Count a try of a message to a webhook."""
        self._metrics.webhooks.labels(result).inc()

    def _label(self, tenant: str) -> str:
        if tenant not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(tenant)
        return tenant
