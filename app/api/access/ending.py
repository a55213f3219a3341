"""Ending of a gateway: it takes no new requests, lets those that it has begun finish, and cuts the rest off in time.

Load balancers see it in /ready. A stream that is cut off ends with an error event and without `[DONE]`, as OpenAI's do.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import refuse
from app.domain.errors import STOPPING, Unavailable
from app.serve.sse import error_event

OPEN_TO_THE_END: Final = frozenset({"/health", "/healthz", "/ready", "/readyz", "/metrics", "/metrics/engine"})
"""Paths that are answered until the end: probes and Prometheus watch a gateway that ends, too."""

EVENT_STREAM: Final = "text/event-stream"


@dataclass(slots=True, eq=False)
class _Open:
    """Request that is being answered. kind: content type of an answer that has begun, else empty."""

    task: "asyncio.Task[object]"
    scope: Scope
    kind: str = ""

    @property
    def watches(self) -> bool:
        """True if the request only watches events, which end with the gateway."""
        return self.scope["method"] == "GET" and self.kind.startswith(EVENT_STREAM)


class Ending:
    """State of a gateway that may end, with its open requests. Used on the event loop only."""

    def __init__(self) -> None:
        self.begun = False
        self._open: set[_Open] = set()
        self._cut: set[_Open] = set()

    async def drain(self, seconds: float) -> int:
        """Refuse new requests, and return when all open ones have ended; cut them off after `seconds`.

        Returns the number that was cut off. Requests that only watch are cut off at once, and not counted.
        """
        self.begun = True
        await self._cut_off({one for one in self._open if one.watches})
        if self._open:
            await asyncio.wait({one.task for one in self._open}, timeout=seconds)
        late = set(self._open)
        await self._cut_off(late)
        return len(late)

    async def _cut_off(self, these: set[_Open]) -> None:
        self._cut |= these
        for one in these:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in these), return_exceptions=True)

    def opened(self, scope: Scope) -> _Open:
        """Register the request that the current task answers; `closed` must follow."""
        task = asyncio.current_task()
        assert task is not None  # coroutines run in tasks
        self._open.add(one := _Open(task, scope))
        return one

    def closed(self, one: _Open) -> None:
        """Forget a request that has ended."""
        self._open.discard(one)

    def is_cut(self, one: _Open) -> bool:
        """Return whether a request's task was cancelled because the gateway ends."""
        return one in self._cut


class EndingRequests:
    """ASGI middleware: registers requests with Ending, refuses new ones once it has begun, and answers those cut off."""

    def __init__(self, app: ASGIApp, ending: Ending) -> None:
        self._app = app
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless the gateway ends (ASGI)."""
        if scope["type"] != "http" or scope["path"] in OPEN_TO_THE_END:
            await self._app(scope, receive, send)
            return
        if self._ending.begun:
            await _refuse(scope, receive, send)
            return
        one = self._ending.opened(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                one.kind = Headers(raw=message["headers"]).get("content-type", "?")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if not self._ending.is_cut(one):
                raise
            one.task.uncancel()
            await _end(one, receive, send)
        finally:
            self._ending.closed(one)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    response = await refuse(Request(scope), _error())
    await response(scope, receive, send)


async def _end(one: _Open, receive: Receive, send: Send) -> None:
    """Answer a request that was cut off; of an answer that has begun and is no stream nothing more can be said."""
    if not one.kind:
        await _refuse(one.scope, receive, send)
    elif one.kind.startswith(EVENT_STREAM):
        last = b"" if one.watches else error_event(_error())
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _error() -> Unavailable:
    return Unavailable(STOPPING, "the gateway is being stopped")
