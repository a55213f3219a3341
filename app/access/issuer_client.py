"""HTTP client of OpenID Connect issuers: every answer bounded in bytes and in time, no redirect followed.

An address comes from the settings or from an issuer's own metadata, never from a token.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from app.domain.errors import ISSUER_AWAY, Unavailable
from app.domain.printable import printable

FETCH_S: Final = 5.0
"""Seconds for one exchange with an issuer, from the name's resolution to the last byte; also for a key set and the metadata
that names it. No request with a token waits longer for an issuer."""

ANSWER_BYTES: Final = 256 << 10
"""Most bytes of an issuer's answer. Metadata has about 5 KB, a key set of ten RSA keys about 15 KB."""

PIECE_BYTES: Final = 16 << 10
BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
"""Exceptions of a connection that failed, of an address that is none, and of an answer that is not JSON."""

_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}


class IssuerClient:
    """HTTP client of issuers. Used on the event loop. Proxies are those of the environment (HTTPS_PROXY)."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str) -> dict[str, Any]:
        """Return the JSON object at an address. Raises Unavailable ISSUER_AWAY."""
        status, found = await self._exchange("GET", url)
        if status != 200:
            raise Unavailable(ISSUER_AWAY, f"{url} answers with status {status}")
        return found

    async def post(
        self, url: str, form: Mapping[str, str], authorization: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send a form; return status, below 500, and JSON object of the answer. Raises Unavailable ISSUER_AWAY."""
        headers = {} if authorization is None else {"Authorization": authorization}
        status, found = await self._exchange("POST", url, data=dict(form), headers=headers)
        if status >= 500 or 300 <= status < 400:
            raise Unavailable(ISSUER_AWAY, f"{url} answers with status {status}")
        return status, found

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, method: str, url: str, **sent: Any) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=True, auto_decompress=False, headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with asyncio.timeout(FETCH_S):
                async with self._session.request(method, url, allow_redirects=False, **sent) as answer:
                    if 300 <= answer.status < 400 or answer.status >= 500:
                        return answer.status, {}
                    return answer.status, _object(await _bounded(answer, url), url)
        except BROKEN as error:
            why = f"no answer within {FETCH_S:g} s" if isinstance(error, TimeoutError) else printable(str(error), 200)
            raise Unavailable(ISSUER_AWAY, f"{url}: {why or type(error).__name__}") from error


async def _bounded(answer: aiohttp.ClientResponse, url: str) -> bytes:
    """Return the body. Raises Unavailable if it is compressed or too large."""
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Unavailable(ISSUER_AWAY, f"{url}: the answer is compressed, which was not asked for")
    found = bytearray()
    async for piece in answer.content.iter_chunked(PIECE_BYTES):
        found += piece
        if len(found) > ANSWER_BYTES:
            raise Unavailable(ISSUER_AWAY, f"{url}: the answer has more than {ANSWER_BYTES} bytes")
    return bytes(found)


def _object(body: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except RecursionError as error:
        raise Unavailable(ISSUER_AWAY, f"{url}: the answer is nested too deeply") from error
    if not isinstance(found, dict):
        raise Unavailable(ISSUER_AWAY, f"{url}: the answer is not a JSON object")
    return found
