"""What the routes need from the rest of the house; `main` fills it in once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from app.api.access.keys import Keys
from app.api.access.rate_limits import Rates
from app.domain.shares import Shares, address_holder
from app.gateway.rescreening import Rescreening
from app.gateway.uploads import Uploads
from app.observe.metrics import Metrics
from app.serve.admission import Admission
from app.serve.relay import Relay
from app.serve.routing_table import RoutingTable
from app.upload.receive import PendingUpload


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a route may touch.

    receive: turns a request's body into a sealed upload. readiness: name of a part → None or what is wrong with it.
    details: what /ready says besides. engine_metrics: the engine's own, in Prometheus text format.
    """

    keys: Keys
    rates: Rates
    shares: Shares
    admission: Admission
    metrics: Metrics
    uploads: Uploads
    rescreening: Rescreening
    relay: Relay
    routing_table: RoutingTable
    receive: Callable[[Request], Awaitable[PendingUpload]]
    readiness: Callable[[], Awaitable[dict[str, str | None]]]
    details: Callable[[], dict[str, str]]
    engine_metrics: Callable[[], Awaitable[bytes]]


def context_of(request: Request) -> Context:
    """The one Context of this application."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


async def context(request: Request) -> Context:
    """The same as a dependency. Async, though nothing is waited for: others are called in a thread, at every request."""
    return context_of(request)


def holder_of(request: Request) -> str:
    """Name under which the caller holds shared resources: its key's where the route asks for one, else its address."""
    key = getattr(request.state, "key", None)
    return key or address_holder(request.client.host if request.client else "")
