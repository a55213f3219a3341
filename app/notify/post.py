"""Poster: one HTTP request to an address that a caller chose, to where the operator lets this gateway go.

The name is resolved here, every address is checked, and the connection is made to a checked one: no name can turn into
another address in between. No redirect is followed, no proxy of the environment is used, no byte of the answer is kept.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any, Final

import httpx

from app.domain.outside import Address, Outside, Url

CONNECT_S: Final = 5.0
ANSWER_S: Final = 10.0
"""Seconds for making a connection, and for the answer's head after the request was written."""

WHOLE_S: Final = 30.0
"""Seconds for everything: several addresses may be tried."""

MAX_ADDRESSES: Final = 4
"""Most addresses of one name that are tried."""

Resolve = Callable[[str, int], Awaitable[tuple[Address, ...]]]
"""Function from a name and a port to the name's addresses. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Posted:
    """Result of a request. status: of the answer; None: there was none. problem: reason, "" if there was an answer."""

    status: int | None
    problem: str = ""

    @property
    def accepted(self) -> bool:
        """True if the receiver took the message."""
        return self.status is not None and 200 <= self.status < 300


def addresses_of(host: str, port: int) -> tuple[Address, ...]:
    """Return the addresses of a name, without repetition. Blocking. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(ip_address(str(one[4][0]).partition("%")[0]) for one in found))


class Poster:
    """Sender of POST requests. Used on the event loop. outside: addresses it may reach. resolve: finds a name's."""

    def __init__(self, outside: Outside, resolve: Resolve, verify: Any = True) -> None:
        """verify: as of httpx."""
        self._outside, self._resolve = outside, resolve
        self._client = httpx.AsyncClient(
            verify=verify,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_keepalive_connections=0),  # the next connection is checked anew
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: receivers may share an address
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Posted:
        """Send a request to a URL, which is checked again: the operator may have changed the list. Does not raise."""
        try:
            async with asyncio.timeout(WHOLE_S):
                return await self._post(self._outside.check(url), headers, body)
        except TimeoutError:
            return Posted(None, f"no answer within {WHOLE_S:g} s")
        except ValueError as error:
            return Posted(None, f"the target {error}")
        except OSError as error:
            return Posted(None, f"the name was not resolved: {error.strerror or type(error).__name__}")

    async def _post(self, url: Url, headers: Mapping[str, str], body: bytes) -> Posted:
        found = await self._resolve(url.host, url.port)
        allowed = [address for address in found if self._outside.reaches(address, url)]
        if not allowed:
            return Posted(None, "the name has no address that this gateway may reach: it is private, or there is none")
        problem = ""
        for address in allowed[:MAX_ADDRESSES]:
            try:
                return Posted(await self._status(url, address, headers, body))
            except httpx.ConnectError:
                problem = "no connection: refused, unreachable, or its certificate is not valid for the name"
            except httpx.ConnectTimeout:
                problem = f"no connection within {CONNECT_S:g} s"
            except httpx.TimeoutException:
                return Posted(None, f"no answer within {ANSWER_S:g} s")
            except httpx.HTTPError as error:
                return Posted(None, f"the answer was not HTTP, or broke off: {type(error).__name__}")
        return Posted(None, problem)

    async def _status(self, url: Url, address: Address, headers: Mapping[str, str], body: bytes) -> int:
        request = self._client.build_request(
            "POST",
            url.at(address),
            content=body,
            headers={**headers, "host": url.authority, "accept-encoding": "identity"},
            extensions={"sni_hostname": url.host},  # also the name that the certificate must have
        )
        answer = await self._client.send(request, stream=True)
        async with aclosing(answer):
            return answer.status_code
