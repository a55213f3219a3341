"""The composition root: Settings → rooms (house.py) → FastAPI."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import uvicorn
from fastapi import Depends, FastAPI

from app import __version__
from app.api import adapters, errors, events, fleet, openai, ops, rescreening
from app.api.described import describe
from app.api.front import Front
from app.api.guard import guarded
from app.api.request_ids import RequestIds
from app.api.wire import wire
from app.console import pages
from app.console.session import CookieToKey
from app.errors import Unavailable
from app.house import House, open_house
from app.observe.log import configure, event
from app.observe.open_files import tell_open_files
from app.screen.warm import warm
from app.settings import Settings
from app.uncollected import leave_uncollected

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
    house = open_house(settings)
    if house.context.keys.open_door:
        event("open_door", logging.WARNING, note="no API keys: everyone who reaches this port may do everything")
    event("listening", url=f"http://{settings.host}:{settings.port}", data=settings.data, model=settings.served_name)
    app = build_app(house)
    leave_uncollected()
    uvicorn.run(app, host=settings.host, port=settings.port, **server_options(house))


def server_options(house: House) -> dict[str, Any]:
    """What uvicorn is told besides the address."""
    return {
        "log_level": "warning",
        "access_log": False,
        "http": wire(house.context.metrics),
        "ws": "none",
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }


def build_app(house: House) -> FastAPI:
    """The FastAPI application over an open house; its lifespan starts engine and reconciler, and closes the house."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with house.doors:
            await _start(house)
            try:
                yield
            finally:
                await _stop(house)

    open_door = house.context.keys.open_door
    app = FastAPI(
        title="LoRA gateway",
        version=__version__,
        lifespan=lifespan,
        docs_url="/docs" if open_door else None,  # a browser sends no key
        redoc_url=None,
        openapi_url="/openapi.json" if open_door else None,
        redirect_slashes=False,  # a redirect would echo the caller's Host, before any key is asked for
    )
    describe(app)
    if not open_door:
        app.add_api_route("/openapi.json", app.openapi, dependencies=[Depends(guarded)], include_in_schema=False)
    app.add_middleware(RequestIds, traces=house.context.metrics.traces)
    app.state.context = house.context
    app.add_middleware(Front, hosts=house.hosts)
    errors.install(app)
    # Routes are tried one by one for every request: those of inference come first.
    for router in (openai.router, ops.router, adapters.router, rescreening.router, events.router, fleet.router):
        app.include_router(router)
    _mount_console(app)
    return app


def _mount_console(app: FastAPI) -> None:
    for router in (pages.public, pages.router):
        app.include_router(router)
    app.add_middleware(CookieToKey)


async def _start(house: House) -> None:
    if house.embedded is not None:
        try:
            await house.embedded.start()
        except Unavailable as error:  # uploads are still screened and stored; /ready says what is missing
            event("engine_missing", logging.ERROR, why=error.message)
    house.reconciler.start()
    if house.following is not None:
        house.following.start()
    house.auditor.start()
    in_thread = house.context.pipeline.rooms.pools.screening
    await in_thread(house.sandbox.warm if house.sandbox else warm)  # while the engine starts: no upload waits


async def _stop(house: House) -> None:
    house.auditor.stop()
    if house.following is not None:
        await house.following.stop()
    await house.reconciler.stop()
    await house.engine.close()
    if house.front is not None:
        await house.front.close()
    if house.embedded is not None:
        await house.embedded.stop()
