"""Error responses: every error as OpenAI's envelope, {"error": {"message", "type", "param", "code"}}."""

import logging
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.api.access.rate_limits import Kind
from app.api.access.rules import Rule
from app.api.views import one_version
from app.domain.errors import (
    BAD_REQUEST,
    INTERNAL,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    REQUEST_TOO_LARGE,
    Code,
    GatewayError,
    Refused,
    Stage,
    envelope,
)
from app.domain.printable import printable
from app.gateway.version_refused import VersionRefused
from app.observe.log import event
from app.observe.metrics import Metrics
from app.observe.request_id import REQUEST_ID

RETRY_AFTER_S: Final = 5
"""Seconds a client should wait after a retryable error: about one reconcile interval."""

BODY_UNREAD: Final = frozenset({Stage.DOOR, Stage.UPLOAD})
"""Stages that may refuse before the body was read: the connection is closed, or a client could go on sending for ever."""

_FRAMEWORK: Final[dict[int, Code]] = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}


def respond(error: GatewayError, extra: dict[str, object] | None = None) -> JSONResponse:
    """Build the response for one error; `extra` adds top-level fields such as the version's report."""
    headers = {"Retry-After": str(error.retry_after or RETRY_AFTER_S)} if error.code.retryable else {}
    if error.code.stage in BODY_UNREAD or error.code is REQUEST_TOO_LARGE:
        headers["Connection"] = "close"
    if error.ignored:
        headers["X-Gateway-Ignored-Fields"] = error.ignored
    if error.code.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({**envelope(error), **(extra or {})}, error.code.status, headers)


def install(app: FastAPI) -> None:
    """Register handlers that turn every exception, the gateway's or the framework's, into an error response."""
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unexpected)


async def _gateway_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GatewayError)
    return await refuse(request, error)


def note(metrics: Metrics, error: GatewayError, path: str) -> None:
    """Count and log one refusal. path: the requested path."""
    metrics.refused(error)
    where = printable(path, 200)
    event("refused", stage=error.code.stage.value, code=error.code.name, message=error.message, path=where)


async def refuse(request: Request, error: GatewayError) -> JSONResponse:
    """Count and log an error, and build its response."""
    request.state.code = error.code.name
    context = request.app.state.context
    note(context.metrics, error, request.scope["path"])
    response = respond(error, await _refused_version(request, error))
    rule: Rule | None = getattr(request.state, "rule", None)
    if rule is not None and rule.rate is Kind.CHAT:
        response.headers.update(context.meter.headers(request.state.key.tenant))
    return response


async def _refused_version(request: Request, error: GatewayError) -> dict[str, object]:
    """Return the refused version with its report, if the refusal left one."""
    if not isinstance(error, VersionRefused):
        return {}
    row = error.row
    uploads = request.app.state.context.uploads
    which = (str(row.name), row.number, request.state.caller.key.operator)
    view = await uploads.components.pools.reading(one_version, uploads, *which)
    return {"version": view.plain()}


async def _framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _FRAMEWORK.get(error.status_code, BAD_REQUEST)
    response = await _gateway_error(
        request, Refused(code, f"{request.method} {request.scope['path'][:80]}: {error.detail}")
    )
    response.headers.update(error.headers or {})  # such as Allow
    return response


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return await _gateway_error(request, Refused(BAD_REQUEST, f"{where}: {first['msg']}", param=where))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    event("internal_error", logging.ERROR, path=request.url.path, error=repr(error)[:200])
    logging.getLogger("gateway").error("traceback", exc_info=error)
    answer = await _gateway_error(request, GatewayError(INTERNAL, "something broke in the gateway"))
    answer.headers["x-request-id"] = (
        REQUEST_ID.get() or ""
    )  # sent outside the middleware that labels every other response
    return answer
