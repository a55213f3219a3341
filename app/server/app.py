"""The composition root: Settings → rooms (wiring.py) → FastAPI."""

import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import uvicorn
from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

from app import __version__
from app.api import errors
from app.api.access.request_checks import RequestChecks
from app.api.access.request_ids import RequestIds
from app.api.access.rules import guarded
from app.api.http_protocol import wire
from app.api.openapi import describe
from app.api.routes import adapters, engine_pull, events, openai, operations, rescreening
from app.console import pages
from app.console.cookie_auth import CookieToKey
from app.domain.errors import Unavailable
from app.observe.log import configure, event
from app.screen.compiled.warm import warm
from app.server.open_files import tell_open_files
from app.server.settings import Settings
from app.server.wiring import Gateway, wire_gateway

SHUTDOWN_S: Final = 5
"""Seconds that running requests get to end at shutdown."""

KEEP_ALIVE_S: Final = 75
"""Seconds an idle connection is kept, longer than clients keep theirs (httpx and the openai SDK 5, Node 4, aiohttp 15,
load balancers 60): whoever closes second may have sent a request into a connection that is being closed. uvicorn's own 5
cost one request of 12,000 in ten minutes of `bench soak`."""


def run(settings: Settings) -> None:
    """Serve until a signal. Raises GatewayError when a room will not open (store held, reference wrong, …)."""
    configure(settings.log, settings.log_level)
    tell_open_files()
    gateway = wire_gateway(settings)
    if gateway.context.keys.open_door:
        event("open_door", logging.WARNING, note="no API keys: everyone who reaches this port may do everything")
    event("listening", url=f"http://{settings.host}:{settings.port}", data=settings.data, model=settings.served_name)
    app = build_app(gateway)
    gc.collect()  # the collector never looks again at what stands now: see gc.freeze, and docs/performance.md
    gc.freeze()
    uvicorn.run(app, host=settings.host, port=settings.port, **server_options(gateway))


def server_options(gateway: Gateway) -> dict[str, Any]:
    """What uvicorn is told besides the address."""
    return {
        "log_level": "warning",
        "access_log": False,
        "http": wire(gateway.context.metrics, gateway.context.shares),
        "ws": "none",
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }


def build_app(gateway: Gateway) -> FastAPI:
    """The FastAPI application over an open house; its lifespan starts engine and reconciler, and closes the house."""

    open_door = gateway.context.keys.open_door
    app = FastAPI(
        title="LoRA gateway",
        version=__version__,
        lifespan=lambda _: started(gateway),
        middleware=middleware(gateway),
        docs_url="/docs" if open_door else None,  # a browser sends no key
        redoc_url=None,
        openapi_url="/openapi.json" if open_door else None,
        redirect_slashes=False,  # a redirect would echo the caller's Host, before any key is asked for
    )
    describe(app)
    if not open_door:
        app.add_api_route("/openapi.json", app.openapi, dependencies=[Depends(guarded)], include_in_schema=False)
    app.state.context = gateway.context
    errors.install(app)
    # Routes are tried one by one for every request: those of inference come first.
    for router in (
        openai.router,
        operations.router,
        adapters.router,
        rescreening.router,
        events.router,
        engine_pull.router,
    ):
        app.include_router(router)
    for router in (pages.public, pages.router):
        app.include_router(router)
    return app


def middleware(gateway: Gateway) -> list[Middleware]:
    """Every middleware, outermost first.

    Ids come first, so that every refusal has one. The cookie becomes a key only behind the checks of what other sites'
    pages send: they spare whoever sends a key, for no browser does that by itself.
    """
    return [
        Middleware(RequestIds, traces=gateway.context.metrics.traces),
        Middleware(RequestChecks, hosts=gateway.hosts),
        Middleware(CookieToKey),
    ]


@contextlib.asynccontextmanager
async def started(gateway: Gateway) -> AsyncIterator[None]:
    """The house's parts, running. Each is stopped, the last first, whatever becomes of the others: when the block ends, and
    when one of them does not start.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(gateway.closers)
        if gateway.embedded is not None:
            stack.push_async_callback(gateway.embedded.stop)
            try:
                await gateway.embedded.start()
            except Unavailable as error:  # uploads are still screened and stored; /ready says what is missing
                event("engine_missing", logging.ERROR, why=error.message)
        if gateway.front is not None:
            stack.push_async_callback(gateway.front.close)
        stack.push_async_callback(gateway.engine.close)
        stack.push_async_callback(gateway.reconciler.stop)
        gateway.reconciler.start()
        if gateway.peer_sync is not None:
            stack.push_async_callback(gateway.peer_sync.stop)
            gateway.peer_sync.start()
        stack.callback(gateway.auditor.stop)
        gateway.auditor.start()
        in_thread = gateway.context.uploads.components.pools.screening
        await in_thread(gateway.sandbox.warm if gateway.sandbox else warm)  # while the engine starts: no upload waits
        yield
