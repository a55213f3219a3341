"""Components that the routes use; built once, by app/server/wiring.py."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from app.access.sign_on import SignOn
from app.api.access.ending import Ending
from app.api.access.keys import Keys
from app.api.access.rate_limits import Rates
from app.domain.setting_in_force import SettingInForce
from app.domain.shares import Shares, address_holder
from app.gateway.audit_job import Auditor
from app.gateway.audit_trail import AuditTrail
from app.gateway.evaluation import Evaluation
from app.gateway.key_ring import KeyRing
from app.gateway.rescreening import Rescreening
from app.gateway.rollouts import Rollouts
from app.gateway.tenant_meter import TenantMeter
from app.gateway.tenant_rules import TenantRules
from app.gateway.uploads import Uploads
from app.gateway.usage_ledger import UsageLedger
from app.gateway.version_summary import Summaries
from app.gateway.webhook_delivery import Webhooks
from app.observe.metrics import Metrics
from app.serve.admission import Admission
from app.serve.relay import Relay
from app.serve.routing_table import RoutingTable
from app.store.envelope import Signer
from app.upload.receive import PendingUpload


@dataclass(frozen=True, slots=True)
class Context:
    """Components available to a route.

    ring: keys that are accepted. sign_on: admits the bearers of tokens; None without issuers. usage: counts what requests
    use. meter: limits that by tenant. tenant_rules: policies and canaries of tenants. webhooks: tell tenants what becomes
    of their adapters. trail: records changes. ending: state of a gateway that may end. evaluation: None without a battery.
    receive: turns a request's body into a sealed upload. readiness: name of a part → None, or its problem. details: further
    fields of /ready. engine_metrics: the engine's own metrics, in Prometheus text format. auditor: has the last audit.
    signer: signs statements, if there is a key. settings: those in force, without secrets.
    """

    keys: Keys
    ring: KeyRing
    sign_on: SignOn | None
    usage: UsageLedger
    meter: TenantMeter
    tenant_rules: TenantRules
    webhooks: Webhooks
    trail: AuditTrail
    rates: Rates
    ending: Ending
    shares: Shares
    admission: Admission
    metrics: Metrics
    uploads: Uploads
    rollouts: Rollouts
    summaries: Summaries
    evaluation: Evaluation | None
    rescreening: Rescreening
    relay: Relay
    routing_table: RoutingTable
    receive: Callable[[Request], Awaitable[PendingUpload]]
    readiness: Callable[[], Awaitable[dict[str, str | None]]]
    details: Callable[[], dict[str, str]]
    engine_metrics: Callable[[], Awaitable[bytes]]
    auditor: Auditor
    signer: Signer | None
    settings: tuple[SettingInForce, ...]


def context_of(request: Request) -> Context:
    """Return the one Context of this application."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


async def context(request: Request) -> Context:
    """Return the Context, as a FastAPI dependency. Async, because FastAPI would call a plain function in a thread."""
    return context_of(request)


def holder_of(request: Request) -> str:
    """Return the caller's name in the ledger of shares: its key's holder if the route requires a key, else its address."""
    caller = getattr(request.state, "caller", None)
    return caller.key.holder if caller else address_holder(request.client.host if request.client else "")
