"""Every answer carries `x-request-id`, and each POST leaves a trace where they are wanted: plain ASGI, because it
stands in the way of every token.
"""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observe.request_id import REQUEST_ID, request_id
from app.observe.traces import NO_TRACES, Traces, answered

HEADER: Final = b"x-request-id"


class RequestIds:
    """Takes the caller's id or makes one, keeps it in REQUEST_ID while the request is answered, and sends it back."""

    def __init__(self, app: ASGIApp, traces: Traces = NO_TRACES) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER), None)
        current = request_id(given)
        REQUEST_ID.set(
            current
        )  # not reset: the server gives each request a context of its own, and a 500 is sent later
        line = (HEADER, current.encode("ascii"))

        status = 500  # what a crash is answered with, further out

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), line]
            await send(message)

        method = scope["method"]
        if method != "POST":  # what only looks, /metrics above all, is no story to be told
            await self._app(scope, receive, labelled)
            return
        with self._traces.request(method) as span:
            try:
                await self._app(scope, receive, labelled)
            finally:
                answered(span, method, getattr(scope.get("route"), "path", None), status)
