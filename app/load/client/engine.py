"""HTTP client of one engine, for the few routes of vLLM that the gateway uses.

A load counts as successful only if the engine's list of models confirms it: a load answered with 200 may not have
happened, and one whose connection broke may have (hostile.md R10).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, Unavailable
from app.load.client import model_list
from app.load.client.model_list import CardReader, Cards
from app.load.client.response import BROKEN, NotReached, Response, unavailable
from app.load.reconcile.pulse import Pulse

MODELS_PATH: Final = "/v1/models"
LOAD_PATH: Final = "/v1/load_lora_adapter"
UNLOAD_PATH: Final = "/v1/unload_lora_adapter"
HEALTH_PATH: Final = "/health"
METRICS_PATH: Final = "/metrics"
DEVELOPERS_PATH: Final = "/is_sleeping"
DEVELOPERS: Final = "it runs with VLLM_SERVER_DEV_MODE, so that whoever reaches it can run code in it: start it without"

CONNECT_S: Final = 5.0
"""Seconds to connect: the engine is on this machine or near it."""

CONTROL_S: Final = 10.0
"""Seconds for listing models, unloading and health checks: none of them waits for the model."""

LOAD_S: Final = 120.0
"""Seconds for loading one adapter: the engine reads hundreds of megabytes while it is busy decoding."""

SILENCE_S: Final = 300.0
"""Seconds that an inference answer may send nothing: a request can queue behind long ones before its first byte."""

ANSWER_S: Final = 1800.0
"""Seconds that one inference answer may take in total, however steadily its bytes arrive."""

CONNECTIONS: Final = 1024
"""Inference requests to one engine at the same time; further ones wait. vLLM batches a few hundred sequences."""

CONTROL_CONNECTIONS: Final = 64
"""Control connections, in a pool of their own: streams whose clients do not read could fill a shared pool, and an
engine whose health cannot be checked would count as down."""

IDLE_CONNECTION_S: Final = 4.0
"""Seconds that an idle connection is kept: less than the 5 s after which vLLM closes it, or a request could be sent
on a connection that is being closed."""

CONTROL_BYTES: Final = 8 << 20
"""Bytes read of a control answer, at most; the list of models has its own limit (model_list.py)."""

WORDS: Final = 300
"""Characters quoted of an error message of the engine, at most."""

NO_WORDS: Final = "the engine gave no reason"

JSON_HEADERS: Final[Mapping[str, str]] = {"content-type": "application/json"}


class EngineResponse(Protocol):
    """Answer of the engine whose body has not been read yet. The caller must close it."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def content_type(self) -> str:
        """Media type, without parameters."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises Unavailable ENGINE_UNAVAILABLE if the connection breaks."""

    async def read(self, limit: int) -> bytes:
        """Return the whole body.

        Raises Unavailable ENGINE_UNAVAILABLE if the connection breaks or the body exceeds `limit` bytes.
        """

    def close(self) -> None:
        """Release the connection.

        It goes back to the pool if the body was read to its end; otherwise it is cut, and the engine aborts its work.
        """


class Answering(Protocol):
    """Part of an engine that answers inference requests."""

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = JSON_HEADERS) -> EngineResponse:
        """Send one inference request and return when its status is known.

        Raises Unavailable ENGINE_UNAVAILABLE, NotReached if nothing was sent.
        """

    async def healthy(self) -> bool:
        """Return whether the engine answers and can compute."""


class Engine(Answering, Protocol):
    """Interface of an engine for load and serve. Its methods raise Unavailable and nothing else."""

    @property
    def pulse(self) -> Pulse:
        """Record of how long requests have waited for this engine without a byte of any answer."""

    async def models(self) -> frozenset[str]:
        """Return the names that the engine answers to now."""

    async def cards(self) -> Cards:
        """Return those names, each with the path it is read from (`root`) and, for an adapter, its base (`parent`)."""

    async def load(self, name: str, path: Path) -> None:
        """Make the engine answer to `name` with the adapter in `path`; if it does already, that is a success.

        Raises Unavailable: LOAD_FAILED with the engine's error message, or ENGINE_UNAVAILABLE.
        """

    async def unload(self, name: str) -> None:
        """Remove `name` from the engine; if it is not loaded, that is a success. Raises Unavailable ENGINE_UNAVAILABLE."""

    async def objection(self) -> str | None:
        """Return a reason not to use the engine at all, however it is started; None if there is none.

        Raises Unavailable.
        """

    async def exposition(self) -> bytes:
        """Return the engine's own metrics in Prometheus text format. Raises Unavailable ENGINE_UNAVAILABLE."""

    async def close(self) -> None:
        """Close all connections."""


class ConnectionPool:
    """Client session over TCP or a Unix socket, opened on first use because it belongs to the running event loop.

    limit: connections at the same time; further requests wait.
    """

    def __init__(self, unix_socket: str | None, limit: int) -> None:
        self._unix_socket = unix_socket
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def session(self) -> aiohttp.ClientSession:
        """Return the open session. Raises NotReached after `close`."""
        if self._closed:
            raise NotReached(ENGINE_UNAVAILABLE, "the engine does not belong here any more")
        if self._session is None:
            limit, idle_s = self._limit, IDLE_CONNECTION_S
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(self._unix_socket, limit=limit, keepalive_timeout=idle_s)
                if self._unix_socket
                else aiohttp.TCPConnector(limit=limit, keepalive_timeout=idle_s)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept-encoding"),
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close every connection for good."""
        session, self._session, self._closed = self._session, None, True
        if session is not None:
            await session.close()


class HttpEngine:
    """Engine over HTTP.

    url: `http://host:port`, or `unix:/path/of/socket`.
    api_key: sent as a bearer token, if the engine requires one.
    connections: inference requests at the same time, at most; further ones wait.
    """

    def __init__(self, url: str, *, api_key: str | None = None, connections: int = CONNECTIONS) -> None:
        self.url = url
        self.pulse = Pulse()
        self._unix = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._base = "http://engine" if self._unix else url.rstrip("/")
        self._auth = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._inference = ConnectionPool(self._unix, connections)
        self._control_connections = ConnectionPool(self._unix, CONTROL_CONNECTIONS)
        self._answer_timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)

    async def models(self) -> frozenset[str]:
        """Return the names that the engine answers to now. Raises Unavailable ENGINE_UNAVAILABLE."""
        return frozenset(await self.cards())

    async def cards(self) -> Cards:
        """See Engine.cards. Raises Unavailable ENGINE_UNAVAILABLE."""
        size, reader = 0, CardReader()
        try:
            async with self._request("GET", MODELS_PATH) as response:
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                while piece := await response.content.readany():
                    size += len(piece)
                    if size > model_list.LIST_BYTES:
                        raise ValueError(f"it is over {model_list.LIST_BYTES} bytes")
                    reader.feed(piece)
            return reader.end()
        except BROKEN as error:
            raise unavailable(error) from error
        except (ValueError, RecursionError) as error:
            raise Unavailable(ENGINE_UNAVAILABLE, f"the engine's list of models cannot be read: {error}") from error

    async def load(self, name: str, path: Path) -> None:
        """See Engine.load. The list of models decides whether it succeeded, not the answer."""
        try:
            status, body = await self._control("POST", LOAD_PATH, {"lora_name": name, "lora_path": str(path)}, LOAD_S)
        except Unavailable:
            if name in await self.models():
                return
            raise
        if name in await self.models():
            return
        if status >= 500 and not await self.healthy():  # a dead core causes a 500 too, which is not the adapter's fault
            raise Unavailable(ENGINE_UNAVAILABLE, f"the engine broke down while loading {name}")
        reason = words(body) if status != 200 else "it answered 200 but does not list the adapter"
        reason = reason.replace(str(path), "its artefact").replace(name, "it")  # the uploader must not see either
        raise Unavailable(LOAD_FAILED, reason)

    async def unload(self, name: str) -> None:
        """See Engine.unload. Statuses 200 and 404 count as success; after any other status the list of models decides."""
        status, body = await self._control("POST", UNLOAD_PATH, {"lora_name": name})
        if status not in (200, 404) and name in await self.models():
            raise Unavailable(ENGINE_UNAVAILABLE, f"{name} was not unloaded: {words(body)}")

    async def healthy(self) -> bool:
        """Return whether the engine answers and can compute: vLLM's /health asks its core."""
        try:
            return (await self._control("GET", HEALTH_PATH))[0] == 200
        except Unavailable:
            return False

    async def objection(self) -> str | None:
        """See Engine.objection. Sends a request that vLLM answers only in its development mode."""
        status, body = await self._control("GET", DEVELOPERS_PATH)
        return (
            DEVELOPERS if status == 200 and b'"is_sleeping"' in body else None
        )  # other servers may answer 200 to any path

    async def exposition(self) -> bytes:
        """See Engine.exposition."""
        status, body = await self._control("GET", METRICS_PATH)
        if status != 200:
            raise Unavailable(ENGINE_UNAVAILABLE, f"the engine does not tell its metrics: status {status}")
        return body

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = JSON_HEADERS) -> EngineResponse:
        """See Engine.post."""
        self.pulse.wait()
        try:
            return Response(
                await self._inference.session().post(
                    self._base + path,
                    data=body,
                    headers={**headers, **self._auth} if self._auth else headers,
                    timeout=self._answer_timeout,
                    allow_redirects=False,
                ),
                self.pulse,
            )
        except BROKEN as error:
            raise unavailable(error) from error
        finally:
            self.pulse.leave()

    async def close(self) -> None:
        """Close all connections for good; later requests are not sent."""
        await asyncio.gather(self._inference.close(), self._control_connections.close())

    def _request(
        self, method: str, path: str, payload: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._control_connections.session().request(
            method,
            self._base + path,
            data=None if payload is None else json.dumps(payload).encode(),
            headers={**JSON_HEADERS, **self._auth},
            timeout=aiohttp.ClientTimeout(total=timeout_s or CONTROL_S, sock_connect=CONNECT_S),
            allow_redirects=False,
        )

    async def _control(
        self, method: str, path: str, payload: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Send one small request and return (status, body). Raises Unavailable ENGINE_UNAVAILABLE."""
        try:
            async with self._request(method, path, payload, timeout_s) as response:
                return response.status, await Response(response).read(CONTROL_BYTES)
        except BROKEN as error:
            raise unavailable(error) from error


def words(body: bytes) -> str:
    """Return the engine's error message, taken out of its JSON error envelope if it has one."""
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(body)
        error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
        message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
        return str(message)[:WORDS] if message else NO_WORDS
    return body[: WORDS * 4].decode(errors="replace")[:WORDS] or NO_WORDS
