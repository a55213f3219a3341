"""Who is at the console: an API key in a cookie, and why no other site can use it.

A person signs in with an API key. The key itself becomes a session cookie: HttpOnly (no script reads it), SameSite=Strict
(no other site's page makes the browser send it), Secure where the page came over https. There is no table of sessions: a
key that is taken away stops working here at once, a restart signs nobody out, and every route goes on asking `guarded`
for what the key may do.

The API itself knows no cookies. This middleware turns the cookie into an `Authorization` header, for two kinds of requests
only: GETs of the console's own pages, which change nothing; and requests that carry the header `X-Console`, which the
console's scripts send. A form or an image of another site cannot send a header of its own, and another site's script only
after a preflight, which nothing here answers: so a cookie alone never changes anything. One mechanism, for API calls and
signing in alike. Behind a proxy that ends TLS, uvicorn takes the scheme from X-Forwarded-Proto of a trusted address.
"""

import base64
import binascii
from http.cookies import CookieError, SimpleCookie
from typing import Final

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE: Final = "gateway_console"
HEADER: Final = "x-console"
"""What the console's own scripts send, whatever its value; no other site can."""

PAGES: Final = "/console"
MAX_KEY_BYTES: Final = 512
"""Longest key that fits the cookie; a browser keeps about 4 KiB."""


def remember(response: Response, key: str, *, secure: bool) -> None:
    """Keep a key that was checked in the visitor's browser until it is closed."""
    value = base64.urlsafe_b64encode(key.encode()).decode()  # a key may hold what a cookie may not
    response.set_cookie(COOKIE, value, httponly=True, samesite="strict", secure=secure, path="/")


def forget(response: Response) -> None:
    """Sign out."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")


def is_page(path: str) -> bool:
    """Whether a path is the console's own."""
    return path in {"/", PAGES} or path.startswith(f"{PAGES}/")


class CookieToKey:
    """ASGI middleware: the console's cookie as an `Authorization` header, where that is allowed (see above)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and (key := _key(scope)) is not None:
            scope = {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + key)]}
        await self._app(scope, receive, send)


def _key(scope: Scope) -> bytes | None:
    """The key to add to this request, if any."""
    headers = Headers(scope=scope)
    if "authorization" in headers or "cookie" not in headers:
        return None
    looks = scope["method"] in {"GET", "HEAD"} and is_page(scope["path"])
    if not looks and HEADER not in headers:
        return None
    try:
        morsel = SimpleCookie(headers["cookie"]).get(COOKIE)
        key = base64.b64decode(morsel.value, altchars=b"-_", validate=True) if morsel is not None else b""
    except (CookieError, binascii.Error, ValueError):
        return None
    fits = 0 < len(key) <= MAX_KEY_BYTES and not any(byte < 0x20 or byte == 0x7F for byte in key)
    return key if fits else None
