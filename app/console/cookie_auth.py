"""Console session: an API key or an ID token in a cookie, protected against use by other sites.

A person signs in with an API key, or at an issuer (oidc_sign_in.py). The key or ID token itself becomes a session cookie:
HttpOnly (scripts cannot read it), SameSite=Strict (no other site's page makes the browser send it), Secure if the page was
loaded over https. There is no table of sessions: a token ends with its time, a revoked key stops working here at once, a
restart signs no visitor out, and every route still checks the key's roles with `guarded`.

The API itself does not use cookies. This middleware turns the cookie into an `Authorization` header, for two kinds of
requests only: GETs of the console's own pages, which change nothing; and requests with the header `X-Console`, which the
console's scripts send. A form or an image of another site cannot set a header, and another site's script can only after a
preflight, which the gateway does not answer: so a cookie alone never changes anything. API calls and signing in use the
same mechanism. Behind a proxy that terminates TLS, uvicorn takes the scheme from X-Forwarded-Proto of a trusted address.
"""

import base64
import binascii
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.tokens import is_token
from app.api.access.caller import TENANT
from app.api.access.keys import authorization
from app.domain.tenants import is_tenant

COOKIE: Final = "gateway_console"
HEADER: Final = "x-console"
"""Header sent by the console's own scripts, with any value; other sites cannot send it."""

PAGES: Final = "/console"
TENANT_COOKIE: Final = "gateway_tenant"
"""Cookie with the tenant in which an operator's pages act; the console's script sets it."""

REFERENCE: Final = "/docs"
"""Page of the API, where people look for it."""

MAX_KEY_BYTES: Final = 512
"""Most bytes of a key in the cookie."""

MAX_TOKEN_BYTES: Final = 3900
"""Most bytes of an ID token in the cookie; a browser stores cookies of 4,096 bytes, name and attributes included."""


def remember(response: Response, key: str, *, secure: bool) -> None:
    """Set the session cookie to a verified key or token; it lasts until the browser is closed. Forget another visitor's
    tenant."""
    # A key may contain characters that a cookie may not; a token is longer, and would be too long in base64.
    value = key if is_token(key) else base64.urlsafe_b64encode(key.encode()).decode()
    response.set_cookie(COOKIE, value, httponly=True, samesite="strict", secure=secure, path="/")
    response.delete_cookie(TENANT_COOKIE, samesite="strict", path="/")


def forget(response: Response) -> None:
    """Delete the session's cookies."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
    response.delete_cookie(TENANT_COOKIE, samesite="strict", path="/")


def is_page(path: str) -> bool:
    """Return whether a path belongs to the console."""
    return path in {"/", PAGES, REFERENCE} or path.startswith(f"{PAGES}/")


class CookieToKey:
    """ASGI middleware: turns the console's cookies into an `Authorization` header and the tenant in which an operator acts,
    if that is allowed (see above)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add header and tenant if allowed, then pass the request on (ASGI)."""
        if scope["type"] == "http" and _may_use_cookies(scope):
            cookies = _cookies(scope)
            if (key := _key(cookies)) is not None:
                scope = {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + key)]}
            if (tenant := _tenant(cookies)) is not None and not _names_tenant(scope):
                query = b"&".join(filter(None, (scope["query_string"], f"{TENANT}={tenant}".encode())))
                scope = {**scope, "query_string": query}
        await self._app(scope, receive, send)


def _may_use_cookies(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    if authorization(headers) is not None or "cookie" not in headers:
        return False
    return HEADER in headers or (scope["method"] in {"GET", "HEAD"} and is_page(scope["path"]))


def _cookies(scope: Scope) -> SimpleCookie:
    try:
        return SimpleCookie(Headers(scope=scope)["cookie"])
    except CookieError:
        return SimpleCookie()


def _key(cookies: SimpleCookie) -> bytes | None:
    """Return the key or token to add to a request, if any."""
    if (morsel := cookies.get(COOKIE)) is None:
        return None
    if is_token(morsel.value):  # no base64 has a dot
        return morsel.value.encode() if len(morsel.value) <= MAX_TOKEN_BYTES else None
    try:
        key = base64.b64decode(morsel.value, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    fits = 0 < len(key) <= MAX_KEY_BYTES and not any(byte < 0x20 or byte == 0x7F for byte in key)
    return key if fits else None


def _tenant(cookies: SimpleCookie) -> str | None:
    """Return the chosen tenant, if any."""
    morsel = cookies.get(TENANT_COOKIE)
    return morsel.value if morsel is not None and is_tenant(morsel.value) else None


def _names_tenant(scope: Scope) -> bool:
    return TENANT in parse_qs(scope["query_string"].decode("latin-1"))
