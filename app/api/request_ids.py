"""Every answer carries `x-request-id`: plain ASGI around all routes, because it stands in the way of every token."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observe.request import REQUEST_ID, request_id

HEADER: Final = b"x-request-id"


class RequestIds:
    """Takes the caller's id or makes one, keeps it in REQUEST_ID while the request is answered, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), line]
            await send(message)

        await self._app(scope, receive, labelled)
