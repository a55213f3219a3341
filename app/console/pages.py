"""Console routes. Pages only show data; changes are API requests made by the pages' scripts."""

import pathlib
import re
from collections.abc import Callable, Coroutine
from importlib import resources
from posixpath import normpath
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qs, quote, unquote

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.routing import APIRoute

from app.api.access.caller import AdapterInPath, Caller, caller_of, guarded
from app.api.bodies import body_of
from app.api.dependencies import Context, context
from app.api.views import one_version, traffic_view
from app.console.adapter_list import Column, Group, Wanted, listing
from app.console.comparison import comparison
from app.console.cookie_auth import COOKIE, HEADER, MAX_KEY_BYTES, REFERENCE, forget, remember
from app.console.engine_list import engine_list
from app.console.heatmap import fate, heat_map, ratio
from app.console.render import HEADERS, POLICY, page
from app.console.trends import OUTCOMES, trends
from app.console.version_history import history, version_of
from app.domain.errors import (
    BAD_REQUEST,
    NOT_FOUND,
    REQUEST_TOO_LARGE,
    UNAUTHORIZED,
    VERSION_NOT_FOUND,
    GatewayError,
    Refused,
)
from app.domain.names import MAX_NUMBER
from app.observe.log import event
from app.serve.models import models_payload
from app.store.audit.rules import INVARIANTS

SIGN_IN: Final = "/console/sign-in"
SESSION: Final = "/console/session"
STATIC: Final = "/console/static"

REPORT: Final = "/adapters/{name}/versions/{number}"
"""Route whose roles may see what reports say."""

MAX_FORM_BYTES: Final = 4096
"""Most bytes of a sign-in's body: a key, percent-encoded."""

MAX_PAGE: Final = 1_000_000


class ConsoleRoute(APIRoute):
    """Route class that renders refusals as pages and redirects visitors who have not signed in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler to render errors."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except GatewayError as error:
                return refused(request, error)
            except RequestValidationError as error:
                return refused(request, Refused(BAD_REQUEST, str(error.errors()[0]["msg"])))

        return handled


public = APIRouter(include_in_schema=False)
router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(guarded)])
SWAGGER: Final = pathlib.Path(str(resources.files("fastapi_offline"))) / "static"
FILES: Final = {
    **{path.name: path for path in (pathlib.Path(__file__).parent / "static").iterdir() if path.is_file()},
    **{name: SWAGGER / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")},
}
"""Style sheets and scripts: served without a key, like the sign-in page that needs them. No other file is served."""

Ctx = Annotated[Context, Depends(context)]


def refused(request: Request, error: GatewayError) -> Response:
    """Redirect to the sign-in page, or render the error page."""
    if error.code is UNAUTHORIZED:
        next_path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{SIGN_IN}?next={quote(next_path, safe='/')}", 303, HEADERS)
    ctx = request.app.state.context
    request.state.code = error.code.name
    ctx.metrics.refused(error)
    event("refused", stage=error.code.stage.value, code=error.code.name, message=error.message, path=request.url.path)
    return show(request, ctx, "error.html", error.code.status, error=error)


def show(request: Request, ctx: Context, template: str, status: int = 200, **values: Any) -> Response:
    """Render a page. permits(method, route): whether the visitor's key may use a route; pages offer nothing else.

    elsewhere: the tenant in which an operator acts, if it is another than the key's. acts_in: the same, if it is the key's
    as well: the page's scripts name it, because another tab may choose another one meanwhile.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    frame = {
        "here": request.url.path,
        "signed_in": not ctx.keys.open_door and COOKIE in request.cookies,
        "open_door": ctx.keys.open_door,
        "permits": caller.permits if caller else lambda _method, _route: False,
        "elsewhere": caller.tenant if caller and caller.tenant != caller.key.tenant else None,
        "acts_in": caller.tenant if caller and caller.key.operator else None,
    }
    return page(template, status, **frame, **values)


@router.get("/")
def adapters(
    request: Request,
    ctx: Ctx,
    q: Annotated[str, Query(max_length=200)] = "",
    state: Group = Group.ANY,
    sort: Column = Column.NAME,
    order: Literal["asc", "desc"] = "asc",
    number: Annotated[int, Query(alias="page", ge=1, le=MAX_PAGE)] = 1,
) -> Response:
    """Show every adapter with its status, and the settings in force."""
    components = ctx.uploads.components
    traffic = ctx.metrics.traffic()
    caller = caller_of(request)
    measured = caller.permits("GET", REPORT)
    wanted = Wanted(q, state, sort, order == "desc", number)
    return show(
        request,
        ctx,
        "adapters.html",
        policy=components.rules.of(caller.tenant).policy,
        listing=listing(ctx.uploads, ctx.summaries if measured else None, traffic, wanted, caller.tenant),
        measured=measured,
        components=components,
        engines=components.reconciler.each,
        served_traffic=traffic.served_model if caller.sees is None else None,
    )


@router.get("/console")
def home() -> Response:
    """Redirect to the list, at `/`."""
    return RedirectResponse("/", 303, HEADERS)


@router.get("/console/adapters/{name}")
def adapter(
    request: Request,
    ctx: Ctx,
    name: AdapterInPath,
    version: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
    before: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
) -> Response:
    """Show one adapter: a version's heat map and verdict, and the history of all versions."""
    row = ctx.uploads.components.catalogue.adapter(name)
    exact = caller_of(request).key.operator
    versions, older = history(ctx.uploads, name, before, exact=exact)
    number = version or row.active or (versions[0].row.number if versions else None)
    chosen = version_of(ctx.uploads, name, number, exact=exact) if number is not None else None
    verdict = chosen.verdict if chosen else None
    return show(
        request,
        ctx,
        "adapter.html",
        adapter=row,
        versions=versions,
        older=older,
        chosen=chosen,
        verdict=verdict,
        heat=heat_map(verdict) if verdict else None,
        ratio=ratio,
        fate=fate,
        traffic=ctx.metrics.traffic().of(str(row.name)),
        rollout=traffic_view(ctx.uploads, row) if row.rollout else None,
        seen=ctx.metrics.rollouts.seen(str(row.name)) if row.rollout else {},
        totals=_totals(ctx, name),
    )


def _totals(ctx: Context, name: str) -> dict[str, int]:
    """Return the number of an adapter's versions, and of those that requests may name now."""
    served = sum(one.adapter == name for one in ctx.uploads.components.desired.state.served)
    return {"versions": len(ctx.uploads.components.catalogue.versions(name)), "served": served}


@router.get("/console/adapters/{name}/compare")
def compare(
    request: Request,
    ctx: Ctx,
    name: AdapterInPath,
    a: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
    b: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
) -> Response:
    """Show version `a` of an adapter beside version `b`; by default the one before `b`, and the active or newest one."""
    catalogue, exact = ctx.uploads.components.catalogue, caller_of(request).key.operator
    row = catalogue.adapter(name)
    numbers = [version.number for version in catalogue.versions(name)]
    if not numbers:
        raise Refused(VERSION_NOT_FOUND, f"{row.name} has no version yet", param="version")
    after = b or row.active or numbers[-1]
    before = a or max((one for one in numbers if one < after), default=numbers[0])
    pair = [version_of(ctx.uploads, name, one, exact=exact) for one in (before, after)]
    return show(request, ctx, "compare.html", adapter=row, numbers=numbers, compared=comparison(*pair))


@router.get("/console/adapters/{name}/versions/{number}/report.json")
def report(
    request: Request, ctx: Ctx, name: AdapterInPath, number: Annotated[int, Path(ge=1, le=MAX_NUMBER)]
) -> Response:
    """Return a version with its report as a file: the API's answer, with scores rounded for the same callers."""
    view = one_version(ctx.uploads, name, number, caller_of(request).key.operator)
    file = f'attachment; filename="{view.name}-v{number}-report.json"'
    return view.response(headers={**HEADERS, "Content-Disposition": file})


@router.get("/console/upload")
def upload(request: Request, ctx: Ctx, name: Annotated[str, Query(max_length=200)] = "") -> Response:
    """Show the upload form. name: prefilled adapter name."""
    return show(request, ctx, "upload.html", name=name, components=ctx.uploads.components)


@router.get("/console/chat")
def chat(
    request: Request,
    ctx: Ctx,
    a: Annotated[str, Query(max_length=200)] = "",
    b: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Show two models side by side. a, b: the models preselected."""
    models = [card["id"] for card in models_payload(ctx.routing_table, caller_of(request).reach)["data"]]
    served, others = models[0], models[1:]
    left = a or (others[0] if others else served)
    right = b or served
    return show(request, ctx, "chat.html", served=served, models=models, left=left, right=right)


@router.get("/console/trends")
def trendsshow(request: Request, ctx: Ctx) -> Response:
    """Show the uploads of the last days, to the operator everyone's: outcomes, changed modules, answers to canaries."""
    found = trends(ctx.uploads.components.catalogue, ctx.summaries, tenant=caller_of(request).sees)
    return show(request, ctx, "trends.html", trends=found, outcomes=OUTCOMES)


@router.get("/console/engines")
def engines(request: Request, ctx: Ctx) -> Response:
    """Show every engine: its state, its last error, and the versions that it should hold."""
    return show(request, ctx, "engines.html", found=engine_list(ctx.uploads.components))


@router.get("/console/audit")
def audit(request: Request, ctx: Ctx) -> Response:
    """Show the last audit: its scope and its findings."""
    return show(request, ctx, "audit.html", last=ctx.auditor.last, every_s=ctx.auditor.every_s, invariants=INVARIANTS)


@router.get("/console/settings")
def settings(request: Request, ctx: Ctx) -> Response:
    """Show every setting in force. Secrets are not among the values that this floor knows."""
    return show(request, ctx, "settings.html", settings=ctx.settings)


@router.get(REFERENCE)
def api_reference(request: Request, ctx: Ctx) -> Response:
    """Show every route by Swagger UI, which sends requests with the visitor's key."""
    response = show(request, ctx, "api.html")
    response.headers["Content-Security-Policy"] = POLICY.replace("img-src 'self'", "img-src 'self' data:")
    return response


@router.get("/console/{rest:path}")
def nothing(rest: str) -> Response:
    """Refuse a path that is not a page."""
    raise Refused(NOT_FOUND, f"there is no page {rest[:80]!r} in the console")


@public.get(STATIC + "/{file}")
def static(file: str) -> Response:
    """Return one of the console's static files."""
    if file not in FILES:
        raise Refused(NOT_FOUND, f"the console has no file {file[:80]!r}")
    return FileResponse(FILES[file])


@public.get(SIGN_IN)
def sign_in(
    request: Request, ctx: Ctx, next_path: Annotated[str, Query(alias="next", max_length=2000)] = "/"
) -> Response:
    """Show the sign-in page. next: path on this gateway to open after signing in."""
    at_issuer = ctx.sign_on is not None and ctx.sign_on.code_flow is not None
    return show(request, ctx, "sign-in.html", next=local_path(next_path), at_issuer=at_issuer)


def local_path(path: str) -> str:
    """Return a path on this gateway; `/` for an address elsewhere, and for the pages of signing in, which would not end."""
    local = path.startswith("/") and not path.startswith("//") and path.isprintable() and "\\" not in path
    page = normpath(unquote(re.split("[?#]", path, maxsplit=1)[0]))  # as a browser and this gateway read it
    return path if local and page != SIGN_IN and not page.startswith(f"{SIGN_IN}/") else "/"


@public.post(SESSION)
async def open_session(request: Request, ctx: Ctx) -> Response:
    """Check a key (form field `key`) and set the session cookie. Only for the console's own script: see cookie_auth.py."""
    _require_script(request)
    key = await _posted_key(request)
    await ctx.keys.admit(f"Bearer {key}")
    response = Response(status_code=204, headers=HEADERS)
    remember(response, key, secure=request.url.scheme == "https")
    return response


@public.delete(SESSION)
async def close_session(request: Request) -> Response:
    """Sign out: delete the session cookie."""
    _require_script(request)
    response = Response(status_code=204, headers=HEADERS)
    forget(response)
    return response


def _require_script(request: Request) -> None:
    if HEADER not in request.headers:
        raise Refused(BAD_REQUEST, f"the header {HEADER} is missing: only the console's own pages may ask for this")


async def _posted_key(request: Request) -> str:
    async with body_of(request, MAX_FORM_BYTES) as body:
        key = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip()
    if len(key.encode()) > MAX_KEY_BYTES:
        raise Refused(REQUEST_TOO_LARGE, f"a key is at most {MAX_KEY_BYTES} bytes")
    return key
