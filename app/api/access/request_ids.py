"""Middleware for request ids and traces: every response carries `x-request-id`, and each POST is traced if traces are on.

Plain ASGI rather than Starlette's middleware, because every token of a stream passes through it.
"""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observe.request_id import REQUEST_ID, request_id
from app.observe.traces import NO_TRACES, Traces, answered

HEADER: Final = b"x-request-id"


class RequestIds:
    """ASGI middleware: takes the caller's request id or makes one, sets REQUEST_ID to it, and sends it back."""

    def __init__(self, app: ASGIApp, traces: Traces = NO_TRACES) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Label the response and trace a POST (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER), None)
        current = request_id(given)
        REQUEST_ID.set(current)  # not reset: each request has its own context, and a 500 is sent later
        line = (HEADER, current.encode("ascii"))

        status = 500  # if the application crashes, an outer handler answers 500

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), line]
            await send(message)

        method = scope["method"]
        if method != "POST":  # reads, above all of /metrics, are not worth a trace
            await self._app(scope, receive, labelled)
            return
        with self._traces.request(method) as span:
            try:
                await self._app(scope, receive, labelled)
            finally:
                answered(span, method, getattr(scope.get("route"), "path", None), status)
