"""Checks of every request before routing: Host, duplicate headers, path, encoding, and cross-site requests
(cross_site.py).

Routing works on the decoded path, proxies in front of the gateway on the raw one. A path that the two could read
differently (`//`, `%2f`, dot segments) is therefore not found, for every caller.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access.cross_site import check_site
from app.api.errors import refuse
from app.domain.errors import BAD_HOST, BAD_REQUEST, NOT_FOUND, UNSUPPORTED_ENCODING, Refused

MAX_HOST_CHARS: Final = 255
"""Most characters of a Host header: a DNS name's length, and a port."""

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"({_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]{{2,45}}\])(?::([0-9]{{1,5}}))?")
_PATH = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@%-]+(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*/?)?")
_AMBIGUOUS = re.compile(rb"%(?:2[fF]|5[cC]|2[eE]|25|[01][0-9A-Fa-f]|7[fF]|[89A-Fa-f][0-9A-Fa-f]|(?![0-9A-Fa-f]{2}))")
"""Percent-encoded slash, backslash, dot, percent, control or non-ASCII character; or a percent sign encoding nothing."""


API: Final = b"/v1/"
"""Prefix of the paths that may end with a slash."""

SINGLE: Final = frozenset(
    {
        *(b"authorization", b"content-length", b"content-type", b"cookie", b"origin", b"sec-fetch-site"),
        *(b"x-api-key", b"x-console", b"x-request-id", b"x-session-id", b"x-weights-sha256"),
    }
)
"""Headers that the gateway reads and that may occur only once: of two, one reader takes the first and another the last.
Host is checked separately, with its own refusal; every Content-Encoding is examined; the server's parser checks the headers
it reads itself."""


class RequestChecks:
    """ASGI middleware that refuses malformed and cross-site requests before routing.

    hosts: names accepted (lower case, no port); empty: every well-formed one. origins: those whose pages may call the API.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = (), origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, then pass it on (ASGI)."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except Refused as error:
                response = await refuse(Request(scope), error)
                return await response(scope, receive, send)
        return await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        exempt = not hosts and not self._hosts and scope.get("http_version") != "1.1"  # HTTP/1.0 has no Host header
        if len(hosts) != 1 and not exempt:
            raise Refused(BAD_HOST, f"{len(hosts)} Host headers", param="host")
        for host in hosts:
            self._check_host(host.decode("latin-1"))
        self._check_single(scope)
        path = scope.get("raw_path") or scope["path"].encode()
        if not _PATH.fullmatch(path) or _AMBIGUOUS.search(path) or {b".", b".."} & set(path.split(b"/")):
            raise Refused(NOT_FOUND, f"the path {path[:80].decode('latin-1')!r} is not in plain form")
        if path.startswith(API) and path.endswith(b"/"):  # as clients that join URLs ask; vLLM redirects them
            scope["path"], scope["raw_path"] = scope["path"].rstrip("/"), path.rstrip(b"/")
        check_site(scope["method"], Headers(scope=scope), self._hosts, self._origins)
        codings = [value for name, value in scope["headers"] if name == b"content-encoding"]
        if any(value.strip().lower() not in (b"", b"identity") for value in codings):
            raise Refused(UNSUPPORTED_ENCODING, "the body has a Content-Encoding", param="content-encoding")

    def _check_single(self, scope: Scope) -> None:
        names = [name for name, _ in scope["headers"] if name in SINGLE]
        if len(names) != len(set(names)):
            repeated = next(name for name in names if names.count(name) > 1).decode()
            raise Refused(BAD_REQUEST, f"the header {repeated} stands there more than once", param=repeated)

    def _check_host(self, host: str) -> None:
        found = _HOST.fullmatch(host) if len(host) <= MAX_HOST_CHARS else None
        if found is None or int(found[2] or 0) > 65535 or not _literal_or_name(found[1]):
            raise Refused(BAD_HOST, f"{host[:80]!r} is no host", param="host")
        if self._hosts and found[1].lower().rstrip(".") not in self._hosts:
            raise Refused(BAD_HOST, f"{found[1][:80]!r} is not served here", param="host")


def _literal_or_name(host: str) -> bool:
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True
