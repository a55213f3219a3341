"""The gateway over HTTP: which artefact a name means, and its bytes. Nothing it says is believed before it was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from lora_gateway_vllm.artefact import CHUNK, Artefact, parse
from lora_gateway_vllm.errors import Away, Damaged
from lora_gateway_vllm.settings import Settings

if TYPE_CHECKING:
    import aiohttp

ANSWER_BYTES: Final = 65536
"""Bytes of an answer that are read; the right one has a few thousand, most of them its signed statement."""

Write = Callable[[bytes], object]


class Gateway:
    """A client of one gateway; used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def resolve(self, name: str) -> Artefact | None:
        """The artefact of a version's name; None when the gateway knows no such version. Raises Away."""
        status, body = await self._ask(f"/resolve/{quote(name, safe='@')}")
        if status == 404:
            _confirm_absent(body)
            return None
        if status != 200:
            raise Away(f"the gateway answered {status} about {name}")
        try:
            return parse(json.loads(body), name)
        except (ValueError, RecursionError) as error:
            raise Away(f"the gateway's answer about {name} cannot be read: {error}") from error

    async def fetch(self, digest: str, file: str, size: int, write: Write) -> str:
        """Hand one file's bytes to `write`, piece by piece, and return their SHA-256.

        Raises Away, or Damaged when there are more or fewer than `size`. What `write` raises passes through.
        """
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self._settings.fetch_s, sock_connect=self._settings.connect_s)
        hashed, seen = hashlib.sha256(), 0
        try:
            async with self._open().get(
                f"{self._settings.url}/artefacts/{digest}/{file}", timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise Away(f"the gateway answered {answer.status} for artefact {digest[:12]}")
                async for piece in answer.content.iter_chunked(CHUNK):
                    seen += len(piece)
                    if seen > size:
                        raise Damaged(f"artefact {digest[:12]}: {file} is longer than the gateway said")
                    hashed.update(piece)
                    write(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Away(f"artefact {digest[:12]} could not be fetched: {type(error).__name__}") from error
        if seen != size:
            raise Damaged(f"artefact {digest[:12]}: {file} is shorter than the gateway said")
        return hashed.hexdigest()

    async def close(self) -> None:
        """Close its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, path: str) -> tuple[int, bytes]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self._settings.ask_s, sock_connect=self._settings.connect_s)
        try:
            async with self._open().get(self._settings.url + path, timeout=timeout, allow_redirects=False) as answer:
                body = await answer.content.read(ANSWER_BYTES)
                while len(body) < ANSWER_BYTES and (more := await answer.content.read(ANSWER_BYTES)):
                    body += more
                return answer.status, body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(f"the gateway does not answer: {type(error).__name__}") from error

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            key = self._settings.key
            self._session = aiohttp.ClientSession(
                headers={"authorization": f"Bearer {key}"} if key else {},
                connector=aiohttp.TCPConnector(limit=8),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _confirm_absent(body: bytes) -> None:
    """A 404 counts only in the gateway's own words: a proxy in front of it says 404, too. Raises Away."""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        code = None
    if code != "model_not_found":
        raise Away("something that is not the gateway answered 404 in its place")
