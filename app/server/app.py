"""Composition root: settings → components, opened and wired (wiring.py) → FastAPI application."""

import contextlib
import gc
import logging
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import uvicorn
from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import errors
from app.api.access.audited import AuditedRequests
from app.api.access.caller import guarded
from app.api.access.ending import EndingRequests
from app.api.access.request_checks import RequestChecks
from app.api.access.request_ids import RequestIds
from app.api.http_protocol import wire
from app.api.openapi import describe
from app.api.routes import (
    adapters,
    audit_log,
    engine_pull,
    events,
    openai,
    operations,
    rescreening,
    tenant_rules,
    tenants,
    traffic,
    usage,
    webhooks,
)
from app.console import oidc_sign_in, pages, tenant_pages
from app.console.cookie_auth import CookieToKey
from app.domain.errors import Unavailable
from app.observe.log import configure, event
from app.screen.compiled.warm import warm
from app.server.open_files import tell_open_files
from app.server.settings import Settings
from app.server.signals import drain_before_the_end, reload_on_sighup
from app.server.wiring import Gateway, wire_gateway

SHUTDOWN_S: Final = 5
"""Seconds that connections get to close after every request was answered or cut off (GATEWAY_DRAIN_SECONDS)."""

CORS: Final[Mapping[str, Any]] = {
    "allow_methods": ["GET", "POST", "PUT", "DELETE"],
    "allow_headers": ["*"],  # OpenAI's SDKs send a dozen of their own
    "expose_headers": ["*"],
    "allow_credentials": False,
}
"""Rules for pages of allowed origins: everything but cookies, since a key is needed all the same."""

KEEP_ALIVE_S: Final = 75
"""Seconds an idle connection is kept open, longer than clients keep theirs (httpx and the openai SDK 5, Node 4, aiohttp 15,
load balancers 60): if the gateway closed first, a client might be sending a request into the connection being closed.
uvicorn's default of 5 cost one request of 12,000 in ten minutes of `bench soak`."""


def run(settings: Settings) -> None:
    """Serve until a signal. Raises GatewayError if a component cannot be opened (store in use, wrong reference, …)."""
    configure(settings.log, settings.log_level)
    tell_open_files()
    gateway = wire_gateway(settings)
    if gateway.context.keys.open_door:
        event("open_door", logging.WARNING, note="no API keys: everyone who reaches this port may do everything")
    app = build_app(gateway)
    gc.collect()  # objects that exist now are exempt from later collections: see gc.freeze, and docs/performance.md
    gc.freeze()
    config = uvicorn.Config(app, host=settings.host, port=settings.port, **server_options(gateway))
    server = _Server(config, settings)
    with contextlib.suppress(KeyboardInterrupt):  # SIGINT, raised again after the shutdown
        server.run()
    if not server.started:  # logged: the address is in use, say
        sys.exit(1)


class _Server(uvicorn.Server):
    """HTTP server that logs its address once it listens there."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then log the address; for port 0 the one that was chosen."""
        await super().startup(sockets)
        if self.started:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            event("listening", url=url, data=self._settings.data, model=self._settings.served_name)


def server_options(gateway: Gateway) -> dict[str, Any]:
    """Return uvicorn's options besides the address."""
    return {
        "log_level": "warning",
        "log_config": None,  # log.configure has set its loggers up
        "access_log": False,
        "http": wire(gateway.context.metrics, gateway.context.shares),
        "ws": "none",
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }


def build_app(gateway: Gateway) -> FastAPI:
    """Return the FastAPI application of an opened gateway. Its lifespan starts, stops and closes the components."""
    app = FastAPI(
        title="LoRA gateway",
        version=__version__,
        lifespan=lambda _: started(gateway),
        middleware=middleware(gateway),
        docs_url=None,  # a page of the console
        redoc_url=None,
        openapi_url=None,  # added below, with a guard
        redirect_slashes=False,  # a redirect would echo the caller's Host, before any key is checked
    )
    describe(app)
    app.add_api_route("/openapi.json", app.openapi, dependencies=[Depends(guarded)], include_in_schema=False)
    app.state.context = gateway.context
    errors.install(app)
    # Routes are matched one by one for every request: those of inference come first.
    for router in (
        openai.router,
        operations.router,
        adapters.router,
        traffic.router,
        rescreening.router,
        events.router,
        engine_pull.router,
        tenants.router,
        tenant_rules.router,
        webhooks.router,
        usage.router,
        audit_log.router,
    ):
        app.include_router(router)
    for router in (pages.public, oidc_sign_in.router, tenant_pages.router, pages.router):
        app.include_router(router)
    return app


def middleware(gateway: Gateway) -> list[Middleware]:
    """Return the middleware, outermost first.

    Request ids come first, so that every refusal has one; a gateway that ends checks nothing any more. The console's
    cookie becomes a key only after the cross-site checks: those let requests with a key pass, because no browser adds one
    by itself. Pages of allowed origins come with a key and get no cookie.
    """
    cors = [Middleware(CORSMiddleware, allow_origins=sorted(gateway.origins), **CORS)] if gateway.origins else []
    return [
        Middleware(RequestIds, traces=gateway.context.metrics.traces),
        *cors,
        Middleware(EndingRequests, ending=gateway.context.ending),
        Middleware(RequestChecks, hosts=gateway.hosts, origins=gateway.origins),
        Middleware(CookieToKey),
        Middleware(AuditedRequests, trail=gateway.context.trail),
    ]


@contextlib.asynccontextmanager
async def started(gateway: Gateway) -> AsyncIterator[None]:
    """Run the gateway's components for the duration of the context.

    Each is stopped, the last started first, even if stopping another one fails: when the context ends, and when a component
    does not start.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(event, "stopped")
        stack.enter_context(gateway.closers)
        if gateway.embedded is not None:
            stack.push_async_callback(gateway.embedded.stop)
            try:
                await gateway.embedded.start()
            except Unavailable as error:  # uploads are still screened and stored; /ready reports the engine
                event("engine_missing", logging.ERROR, why=error.message)
        if gateway.front is not None:
            stack.push_async_callback(gateway.front.close)
        stack.push_async_callback(gateway.engine.close)
        stack.push_async_callback(gateway.context.relay.stop)
        stack.push_async_callback(gateway.reconciler.stop)
        gateway.reconciler.start()
        stack.push_async_callback(gateway.context.uploads.publishing.stop)
        if gateway.peer_sync is not None:
            stack.push_async_callback(gateway.peer_sync.stop)
            gateway.peer_sync.start()
        stack.push_async_callback(gateway.context.ring.stop)
        gateway.context.ring.start()
        if gateway.context.sign_on is not None:
            stack.push_async_callback(gateway.context.sign_on.stop)
            gateway.context.sign_on.start()
        stack.push_async_callback(gateway.context.trail.stop)
        gateway.context.trail.start()
        stack.push_async_callback(gateway.context.usage.stop)
        gateway.context.usage.start()
        stack.push_async_callback(gateway.context.meter.stop)
        gateway.context.meter.start()
        stack.push_async_callback(gateway.context.webhooks.stop)
        gateway.context.webhooks.start()
        if gateway.recheck is not None:
            stack.push_async_callback(gateway.recheck.stop)
            gateway.recheck.start()
        stack.enter_context(reload_on_sighup(gateway.reload))
        stack.enter_context(drain_before_the_end(gateway.context.ending, gateway.drain_seconds))
        stack.callback(gateway.auditor.stop)
        gateway.auditor.start()
        in_thread = gateway.context.uploads.components.pools.screening
        # Warm up while the engine starts, so that no upload has to wait for it.
        await in_thread(gateway.sandbox.warm if gateway.sandbox else warm)
        yield
