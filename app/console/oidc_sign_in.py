"""Console sign-in at an OpenID Connect issuer: away to it with a new attempt, and back with a code for an ID token.

The attempt stays in a cookie of the browser until the browser is back: HttpOnly, for ten minutes, and SameSite=Lax, because
the issuer's page sends the browser here. The ID token becomes the session's cookie as an API key would (cookie_auth.py).
That cookie is SameSite=Strict, so a redirect from the issuer's page would arrive without it: the callback is a page of its
own, which goes on by itself.
"""

import base64
import binascii
import secrets
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from app.access.code_flow import Attempt, CodeFlow
from app.api.access.cross_site import OWN_SITE
from app.console.cookie_auth import MAX_TOKEN_BYTES, remember
from app.console.pages import SIGN_IN, ConsoleRoute, Ctx, local_path, refused, show
from app.console.render import HEADERS
from app.domain.errors import NOT_FOUND, SIGN_IN_FAILED, Refused
from app.domain.printable import printable

BEGIN: Final = f"{SIGN_IN}/oidc"
CALLBACK: Final = f"{BEGIN}/callback"

ATTEMPT_COOKIE: Final = "gateway_sign_in"
ATTEMPT_S: Final = 600
"""Seconds that a person may take at the issuer."""

MAX_NEXT: Final = 2000
"""Most bytes of a path to open after signing in; the cookie holds it."""

MAX_ANSWER: Final = 4000
"""Most characters of a part of the issuer's answer."""

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)


@router.get(BEGIN)
async def begin(
    request: Request, ctx: Ctx, next_path: Annotated[str, Query(alias="next", max_length=MAX_NEXT)] = "/"
) -> Response:
    """Send the browser to the issuer. next: path on this gateway to open afterwards.

    From another site a person comes to the sign-in page first: no site signs anybody in here, or ends an attempt.
    """
    flow, there = _flow(ctx), local_path(next_path)
    if not OWN_SITE.issuperset(request.headers.getlist("sec-fetch-site")):
        return RedirectResponse(f"{SIGN_IN}?next={quote(there, safe='/')}", 303, HEADERS)
    attempt = Attempt.new()
    response = RedirectResponse(await flow.begin(attempt), 303, HEADERS)
    path = there.encode()
    kept = base64.urlsafe_b64encode(path if len(path) <= MAX_NEXT else b"/").decode()
    value = ".".join((attempt.state, attempt.nonce, attempt.verifier, kept))
    response.set_cookie(
        ATTEMPT_COOKIE,
        value,
        max_age=ATTEMPT_S,
        httponly=True,
        samesite="lax",
        secure=_secure(request, ctx),
        path=BEGIN,
    )
    return response


@router.get(CALLBACK)
async def callback(
    request: Request,
    ctx: Ctx,
    state: Annotated[str, Query(max_length=MAX_ANSWER)] = "",
    code: Annotated[str, Query(max_length=MAX_ANSWER)] = "",
    error: Annotated[str, Query(max_length=MAX_ANSWER)] = "",
    iss: Annotated[str | None, Query(max_length=MAX_ANSWER)] = None,
) -> Response:
    """Exchange the code, set the session cookie, and go on.

    The attempt is forgotten, also if it is refused; but not by an answer that belongs to another one, nor while the issuer
    is away: the same code may be brought again.
    """
    flow = _flow(ctx)
    attempt, there = _attempt(request)
    if not secrets.compare_digest(attempt.state.encode(), state.encode()):
        raise Refused(SIGN_IN_FAILED, "the answer belongs to another attempt to sign in", param="state")
    try:
        token = await _token(flow, attempt, code, error, iss)
    except Refused as refusal:
        response = refused(request, refusal)
    else:
        response = show(request, ctx, "signed-in.html", next=there)
        remember(response, token, secure=_secure(request, ctx))
    response.delete_cookie(ATTEMPT_COOKIE, httponly=True, samesite="lax", path=BEGIN)
    return response


async def _token(flow: CodeFlow, attempt: Attempt, code: str, error: str, iss: str | None) -> str:
    """Return the ID token of the issuer's answer. Raises Refused SIGN_IN_FAILED, Unavailable ISSUER_AWAY."""
    if error:
        raise Refused(SIGN_IN_FAILED, f"the issuer refused it: {printable(error, 100)}", param="error")
    token = await flow.finish(attempt, code, iss)
    if len(token) > MAX_TOKEN_BYTES:
        why = f"the ID token has {len(token)} bytes, and a cookie holds {MAX_TOKEN_BYTES}"
        raise Refused(SIGN_IN_FAILED, why, remedy="The issuer must leave claims out of ID tokens for this client.")
    return token


def _secure(request: Request, ctx: Ctx) -> bool:
    """Return whether the browser came by https: as this request did, or the registered callback, behind a proxy."""
    return request.url.scheme == "https" or _flow(ctx).redirect_url.startswith("https:")


def _flow(ctx: Ctx) -> CodeFlow:
    """Return the code flow. Raises Refused NOT_FOUND without one."""
    if ctx.sign_on is None or ctx.sign_on.code_flow is None:
        raise Refused(NOT_FOUND, "this gateway has no issuer for its console: sign in with an API key")
    return ctx.sign_on.code_flow


def _attempt(request: Request) -> tuple[Attempt, str]:
    """Return the attempt of the browser's cookie, and the path to open afterwards. Raises Refused SIGN_IN_FAILED."""
    parts = request.cookies.get(ATTEMPT_COOKIE, "").split(".")
    try:
        state, nonce, verifier, there = parts
        path = base64.b64decode(there, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        why = f"this browser began no attempt to sign in here within the last {ATTEMPT_S // 60} minutes"
        raise Refused(SIGN_IN_FAILED, why) from error
    if not (state and nonce and verifier):
        raise Refused(SIGN_IN_FAILED, "the attempt's cookie is malformed")
    return Attempt(state, nonce, verifier), local_path(path)
