"""Client of source servers: requests to listed origins, at addresses that were checked, with answers bounded in time.

The name is resolved anew for every connection, every address is checked, and the connection is made to a checked one: no
name can turn into another address in between. No proxy of the environment is used, and no cookie is kept. Exceptions of the
HTTP library are not passed on, nor chained: they quote headers and addresses, which hold credentials.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app.domain.errors import (
    SOURCE_BROKEN,
    SOURCE_CHANGED,
    SOURCE_FORBIDDEN,
    SOURCE_NOT_ALLOWED,
    SOURCE_NOT_FOUND,
    SOURCE_TIMEOUT,
    SOURCE_UNAVAILABLE,
    GatewayError,
    Refused,
    Unavailable,
)
from app.domain.outside import Address, Outside, Url

CONNECT_S: Final = 5.0
"""Seconds for making one connection; several addresses may be tried."""

HEAD_S: Final = 30.0
"""Seconds from a request to the head of its answer."""

MAX_REDIRECTS: Final = 3
"""Most redirects of one request. A hub sends a reader of a large file on once, to its content network."""

MAX_ADDRESSES: Final = 4
"""Most addresses of one name that are tried."""

MAX_LOCATION: Final = 8190
"""Most characters of an address that a server redirects to: it may be signed, with a policy and a file name in it."""

Resolve = Callable[[str, int], Awaitable[tuple[Address, ...]]]
"""Function from a name and a port to the name's addresses. Raises OSError."""

_NONE: Final[Mapping[str, str]] = {}
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Answer of a source's server, after all redirects. first: headers of the answer before them."""

    status: int
    headers: Mapping[str, str]
    first: Mapping[str, str]
    _body: aiohttp.StreamReader

    @property
    def length(self) -> int | None:
        """Bytes of the body as announced; None if they were not."""
        return number(self.headers, "Content-Length")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises Unavailable if it breaks off."""
        try:
            async for chunk in self._body.iter_any():
                yield chunk
        except (aiohttp.ClientConnectionError, OSError):
            raise Unavailable(SOURCE_UNAVAILABLE, "the connection broke off") from None
        except aiohttp.ClientError:
            raise Unavailable(SOURCE_BROKEN, "the answer ended before the bytes that it announced") from None

    async def read(self, cap: int) -> bytes:
        """Return a small body whole. Raises Unavailable SOURCE_BROKEN if it has more than `cap` bytes, or as `chunks`."""
        found = bytearray()
        async for chunk in self.chunks():
            found += chunk
            if len(found) > cap:
                raise Unavailable(SOURCE_BROKEN, f"the answer has more than {cap} bytes")
        return bytes(found)


class Connected:
    """Connections for one import. Used on the event loop."""

    def __init__(self, session: aiohttp.ClientSession, outside: Outside) -> None:
        self._session, self._outside = session, outside

    @asynccontextmanager
    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], *, secret: Mapping[str, str], redirects: bool
    ) -> AsyncIterator[Answer]:
        """Send a request; yield the answer if it is 200.

        secret: headers for the URL's own origin only. redirects: follow them, to listed origins. Raises Refused
        SOURCE_NOT_ALLOWED, SOURCE_NOT_FOUND, SOURCE_FORBIDDEN, SOURCE_CHANGED; Unavailable SOURCE_TIMEOUT,
        SOURCE_BROKEN, SOURCE_UNAVAILABLE.
        """
        at = self._allowed(url)
        origin, first = (at.scheme, at.authority), _NONE
        for _ in range(MAX_REDIRECTS + 1):
            if (at.scheme, at.authority) != origin:
                secret = {}  # nor for an address of the origin that another server redirects to
            answer = await self._sent(method, at, {**headers, **secret})
            try:
                first = first or answer.headers
                location = answer.headers.get("Location")
                if not redirects or location is None or not 300 <= answer.status < 400:
                    yield _checked(Answer(answer.status, answer.headers, first, answer.content), at)
                    return
            finally:
                answer.close()
            at = self._allowed(location, f"{at.scheme}://{at.authority}{at.path}")
        raise Unavailable(SOURCE_BROKEN, f"the server redirects more than {MAX_REDIRECTS} times")

    def _allowed(self, url: str, base: str = "") -> Url:
        try:
            joined = urljoin(base, url)
        except ValueError:  # its text may quote a password
            raise Refused(SOURCE_NOT_ALLOWED, "the source leads to an address that is none", param="source") from None
        try:
            return self._outside.check(joined, MAX_LOCATION)
        except ValueError as error:
            raise Refused(SOURCE_NOT_ALLOWED, f"the source leads elsewhere: {error}", param="source") from error

    async def _sent(self, method: str, at: Url, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        url = URL(f"{at.scheme}://{at.authority}{at.path}", encoded=True)  # as it stands: it may be signed
        try:
            async with asyncio.timeout(HEAD_S):
                return await self._session.request(method, url, headers=headers, allow_redirects=False)
        except TimeoutError:
            raise Unavailable(SOURCE_TIMEOUT, f"{at.authority} did not answer in time") from None
        except aiohttp.ClientConnectorCertificateError:
            raise _away(at, "its certificate is not valid for the name") from None
        except aiohttp.ClientConnectorDNSError:
            raise _away(at, "its name was not resolved") from None
        except aiohttp.ClientConnectionError:
            raise _away(at, "no connection, or it was broken off") from None
        except (aiohttp.ClientError, ValueError):
            raise Unavailable(SOURCE_BROKEN, f"{at.authority}: its answer is not HTTP") from None


class SourceClient:
    """Client of one kind of source. outside: servers it may reach. resolve: finds a name's addresses."""

    def __init__(self, outside: Outside, resolve: Resolve, verify: Any = True) -> None:
        """verify: `ssl` of aiohttp."""
        self._outside, self._resolve, self._verify = outside, resolve, verify

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connected]:
        """Yield connections for one import, and close them."""
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._outside, self._resolve),
            use_dns_cache=False,
            force_close=True,  # the next connection is checked anew
            ssl=self._verify,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),  # the others: HEAD_S, and upload's pace
            headers={"Accept-Encoding": "identity", "User-Agent": "lora-gateway-import/1"},
        )
        async with session:
            yield Connected(session, self._outside)


class _CheckedResolver(AbstractResolver):
    """Resolver that returns the addresses of a name to which a connection may be made."""

    def __init__(self, outside: Outside, resolve: Resolve) -> None:
        self._outside, self._resolve = outside, resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return them. Raises OSError, and Refused SOURCE_NOT_ALLOWED if there is none."""
        url = Url("https", host, port, "/")
        found = [address for address in await self._resolve(host, port) if self._outside.reaches(address, url)]
        if not found:
            why = f"{host} has no address that this gateway may reach: it is private, or there is none"
            raise Refused(SOURCE_NOT_ALLOWED, why, param="source")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=_FAMILIES[address.version],
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found[:MAX_ADDRESSES]
        ]

    async def close(self) -> None:
        """Do nothing: it holds nothing open."""


def number(headers: Mapping[str, str], name: str) -> int | None:
    """Return the number in a header; None if there is none."""
    text = headers.get(name, "")
    return int(text) if _LENGTH.fullmatch(text) else None


async def as_announced(chunks: AsyncIterator[bytes], sizes: Collection[int]) -> AsyncIterator[bytes]:
    """Yield the chunks. Raises Unavailable SOURCE_BROKEN once they are known not to have each of the announced sizes."""
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        if sizes and total > min(sizes):
            raise Unavailable(SOURCE_BROKEN, f"more bytes arrive than the {min(sizes)} that were announced")
        yield chunk
    if sizes and total != max(sizes):
        raise Unavailable(SOURCE_BROKEN, f"{total} bytes arrived of the {max(sizes)} that were announced")


def _checked(answer: Answer, at: Url) -> Answer:
    """Return an answer with status 200. Raises GatewayError for another one."""
    if answer.status in (401, 403):
        raise Refused(SOURCE_FORBIDDEN, f"{at.authority} refuses this gateway ({answer.status})", param="source")
    if answer.status in (404, 410):
        raise Refused(SOURCE_NOT_FOUND, f"{at.authority} has no such source or file", param="source")
    if 300 <= answer.status < 400:
        why = f"{at.authority} has it under another name, or in another region (status {answer.status})"
        raise Refused(SOURCE_NOT_FOUND, why, param="source")
    if answer.status == 412:
        raise Refused(SOURCE_CHANGED, f"{at.authority} has other bytes by now", param="source")
    if answer.status != 200:
        raise _away(at, f"it answers with status {answer.status}")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Unavailable(SOURCE_BROKEN, f"{at.authority}: the answer is compressed, which was not asked for")
    return answer


def _away(at: Url, why: str) -> GatewayError:
    return Unavailable(SOURCE_UNAVAILABLE, f"{at.authority}: {why}")
