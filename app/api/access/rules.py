"""Access rules: one table of the roles each route requires, and the dependency that checks them before reading a body."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import Request

from app.api.access.keys import authorization
from app.api.access.rate_limits import Kind
from app.api.dependencies import context_of
from app.domain.api_keys import NOBODY, Key, Role
from app.observe.request_id import KEY_NAME


@dataclass(frozen=True, slots=True)
class Rule:
    """Access rule of a route. roles: any one of them suffices, `admin` always does; None: no key is required. rate:
    kind of request for the rate limits."""

    roles: frozenset[Role] | None
    rate: Kind | None = None


def _for(*roles: Role, rate: Kind | None = None) -> Rule:
    return Rule(frozenset(roles), rate)


PUBLIC: Final = Rule(None)
ADMIN_ONLY: Final = _for()
"""Rule for administrators' routes, and for a route that is missing from the table."""

ROUTES: Final[Mapping[tuple[str, str], Rule]] = {
    ("GET", "/health"): PUBLIC,
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/ready"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/version"): _for(*Role),
    ("GET", "/metrics"): _for(Role.METRICS),
    ("GET", "/metrics/engine"): _for(Role.METRICS),
    ("GET", "/resolve/{model}"): _for(Role.ENGINE),
    ("GET", "/artefacts/{digest}/{file}"): _for(Role.ENGINE),
    ("GET", "/openapi.json"): _for(*Role),
    ("GET", "/docs"): _for(*Role),
    ("POST", "/adapters"): _for(Role.UPLOAD, rate=Kind.UPLOAD),
    ("POST", "/screen"): _for(Role.UPLOAD, rate=Kind.SCREEN),
    ("GET", "/adapters"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}/versions/{number}"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}/versions/{number}/attestation"): _for(Role.UPLOAD),
    ("POST", "/adapters/{name}/warm"): _for(Role.UPLOAD, rate=Kind.CHAT),  # it makes the engines work
    ("POST", "/adapters/{name}/rollback"): ADMIN_ONLY,
    ("POST", "/adapters/{name}/rescreen"): ADMIN_ONLY,
    ("POST", "/rescreen"): ADMIN_ONLY,
    ("DELETE", "/adapters/{name}"): ADMIN_ONLY,
    ("PUT", "/adapters/{name}/owner"): ADMIN_ONLY,
    ("GET", "/adapters/{name}/events"): _for(Role.UPLOAD),
    ("GET", "/"): _for(Role.UPLOAD, Role.CHAT),
    ("GET", "/console"): _for(Role.UPLOAD, Role.CHAT),
    ("GET", "/console/adapters/{name}"): _for(Role.UPLOAD),
    ("GET", "/console/adapters/{name}/compare"): _for(Role.UPLOAD),
    ("GET", "/console/adapters/{name}/versions/{number}/report.json"): _for(Role.UPLOAD),
    ("GET", "/console/trends"): _for(Role.UPLOAD),
    ("GET", "/console/engines"): _for(Role.METRICS),
    ("GET", "/console/audit"): ADMIN_ONLY,
    ("GET", "/console/settings"): ADMIN_ONLY,
    ("GET", "/console/upload"): _for(Role.UPLOAD),
    ("GET", "/console/chat"): _for(Role.CHAT),
    ("GET", "/console/{rest:path}"): _for(*Role),
    ("GET", "/console/static/{file}"): PUBLIC,
    ("GET", "/console/sign-in"): PUBLIC,
    ("POST", "/console/session"): PUBLIC,
    ("DELETE", "/console/session"): PUBLIC,
    ("GET", "/v1/models"): _for(Role.CHAT, Role.UPLOAD),
    ("GET", "/v1/models/{name}"): _for(Role.CHAT, Role.UPLOAD),
    ("POST", "/v1/chat/completions"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/v1/completions"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/v1/responses"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/v1/embeddings"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/v1/messages"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/v1/messages/count_tokens"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/tokenize"): _for(Role.CHAT, rate=Kind.CHAT),
    ("POST", "/detokenize"): _for(Role.CHAT, rate=Kind.CHAT),
}
"""Rules of every route. A test fails if a served route is missing here."""


def permits(key: Key, method: str, route: str) -> bool:
    """Return whether a key may use a route."""
    rule = ROUTES.get((method, route), ADMIN_ONLY)
    return rule.roles is None or key.may(rule.roles)


async def guarded(request: Request) -> None:
    """Check the caller's key against the route's rule. Raises Refused UNAUTHORIZED, FORBIDDEN or RATE_LIMITED."""
    ctx = context_of(request)
    route = request.scope["route"].path
    rule = ROUTES.get((request.method, route), ADMIN_ONLY)
    if rule.roles is None:
        return
    key = ctx.keys.admit(authorization(request.headers), rule.roles)
    request.state.key = key.name
    request.state.permits = partial(permits, key)
    KEY_NAME.set(key.name)
    request.state.uploader = NOBODY if ctx.keys.open_door else key.uploader
    if rule.rate is not None:
        ctx.rates.take(key.name, rule.rate)
