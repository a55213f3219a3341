"""An ASGI middleware for `vllm serve --middleware lora_gateway_vllm.closed.OnlyScreened`.

Resolvers work only while VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, which also opens the routes that load any directory as an
adapter, and SageMaker's, which vLLM's own API key does not guard. This shuts them: what is screened comes by its name.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Awaitable, Callable
from typing import Any, Final

Message = dict[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

SHUT: Final = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations")
"""Routes, with all that is below them."""


class OnlyScreened:
    """Answers 404 where an adapter could come in another way; passes on all else."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """One request."""
        if scope["type"] == "http" and is_shut(scope["path"]):
            body = {"error": {"message": "shut: adapters come from the gateway", "type": "NotFoundError", "code": 404}}
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})
            return
        await self._app(scope, receive, send)


def is_shut(path: str) -> bool:
    """Return whether the path leads to one of those routes, in any spelling."""
    plain = posixpath.normpath("/" + path.lstrip("/")).casefold()
    return any(plain == shut or plain.startswith(shut + "/") for shut in SHUT)
