"""Access rules: one table of the keys that each route requires."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from app.api.access.rate_limits import Kind
from app.domain.api_keys import Key, Role
from app.domain.tenants import DEFAULT


@dataclass(frozen=True, slots=True)
class Rule:
    """Access rule of a route. roles: any one of them suffices, `admin` always does; None: no key is required. rate:
    kind of request for the rate limits. operators: only keys of the tenant `default`: it concerns every tenant.
    changes: the audit log has every request that was admitted; of other routes only those that were forbidden."""

    roles: frozenset[Role] | None
    rate: Kind | None = None
    operators: bool = False
    changes: bool = False


def _for(*roles: Role, rate: Kind | None = None, operators: bool = False, changes: bool = False) -> Rule:
    return Rule(frozenset(roles), rate, operators, changes)


PUBLIC: Final = Rule(None)
ADMIN_ONLY: Final = _for()
"""Rule for routes of each tenant's administrators."""

CHANGING: Final = _for(changes=True)
"""Rule for routes by which each tenant's administrators change something."""

OPERATOR_ONLY: Final = _for(operators=True)
"""Rule for the operator's routes, and for a route that is missing from the table."""

ROUTES: Final[Mapping[tuple[str, str], Rule]] = {
    ("GET", "/health"): PUBLIC,
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/ready"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/version"): _for(*Role),
    ("GET", "/metrics"): _for(Role.METRICS, operators=True),
    ("GET", "/metrics/engine"): _for(Role.METRICS, operators=True),
    ("GET", "/resolve/{model}"): _for(Role.ENGINE, operators=True),
    ("GET", "/artefacts/{digest}/{file}"): _for(Role.ENGINE, operators=True),
    ("GET", "/openapi.json"): _for(*Role),
    ("GET", "/docs"): _for(*Role),
    ("POST", "/adapters"): _for(Role.UPLOAD, rate=Kind.UPLOAD, changes=True),
    ("POST", "/screen"): _for(Role.UPLOAD, rate=Kind.SCREEN),
    ("GET", "/adapters"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}/versions/{number}"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}/versions/{number}/attestation"): _for(Role.UPLOAD),
    ("GET", "/adapters/{name}/versions/{number}/signature"): _for(Role.UPLOAD),
    ("POST", "/adapters/{name}/warm"): _for(Role.UPLOAD, rate=Kind.CHAT),  # it makes the engines work
    ("POST", "/adapters/{name}/rollback"): CHANGING,
    ("GET", "/adapters/{name}/traffic"): _for(Role.UPLOAD),
    ("PUT", "/adapters/{name}/traffic"): CHANGING,
    ("DELETE", "/adapters/{name}/traffic"): CHANGING,
    ("POST", "/adapters/{name}/traffic/promote"): CHANGING,
    ("POST", "/adapters/{name}/traffic/abort"): CHANGING,
    ("POST", "/adapters/{name}/rescreen"): CHANGING,
    ("POST", "/rescreen"): _for(operators=True, changes=True),
    ("DELETE", "/adapters/{name}"): CHANGING,
    ("PUT", "/adapters/{name}/owner"): CHANGING,
    ("GET", "/adapters/{name}/events"): _for(Role.UPLOAD),
    ("GET", "/usage"): ADMIN_ONLY,
    ("GET", "/audit"): ADMIN_ONLY,
    ("GET", "/tenants"): OPERATOR_ONLY,
    ("GET", "/tenants/{tenant}/keys"): ADMIN_ONLY,
    ("GET", "/tenants/{tenant}/limits"): ADMIN_ONLY,
    ("PUT", "/tenants/{tenant}/limits"): _for(operators=True, changes=True),
    ("GET", "/tenants/{tenant}/policy"): ADMIN_ONLY,
    ("PUT", "/tenants/{tenant}/policy"): _for(operators=True, changes=True),
    ("GET", "/tenants/{tenant}/canaries"): ADMIN_ONLY,
    ("PUT", "/tenants/{tenant}/canaries"): _for(operators=True, changes=True),
    ("DELETE", "/tenants/{tenant}/canaries"): _for(operators=True, changes=True),
    ("POST", "/tenants/{tenant}/keys"): CHANGING,
    ("POST", "/tenants/{tenant}/keys/{key}/rotate"): CHANGING,
    ("DELETE", "/tenants/{tenant}/keys/{key}"): CHANGING,
    ("GET", "/tenants/{tenant}/webhooks"): ADMIN_ONLY,
    ("POST", "/tenants/{tenant}/webhooks"): CHANGING,
    ("DELETE", "/tenants/{tenant}/webhooks/{webhook}"): CHANGING,
    ("POST", "/tenants/{tenant}/webhooks/{webhook}/ping"): CHANGING,
    ("GET", "/tenants/{tenant}/webhooks/{webhook}/messages"): ADMIN_ONLY,
    ("GET", "/"): _for(Role.UPLOAD, Role.CHAT),
    ("GET", "/console"): _for(Role.UPLOAD, Role.CHAT),
    ("GET", "/console/adapters/{name}"): _for(Role.UPLOAD),
    ("GET", "/console/adapters/{name}/compare"): _for(Role.UPLOAD),
    ("GET", "/console/adapters/{name}/versions/{number}/report.json"): _for(Role.UPLOAD),
    ("GET", "/console/trends"): _for(Role.UPLOAD),
    ("GET", "/console/keys"): ADMIN_ONLY,
    ("GET", "/console/limits"): ADMIN_ONLY,
    ("GET", "/console/usage"): ADMIN_ONLY,
    ("GET", "/console/webhooks"): ADMIN_ONLY,
    ("GET", "/console/tenants"): OPERATOR_ONLY,
    ("GET", "/console/engines"): _for(Role.METRICS, operators=True),
    ("GET", "/console/audit"): OPERATOR_ONLY,
    ("GET", "/console/settings"): OPERATOR_ONLY,
    ("GET", "/console/upload"): _for(Role.UPLOAD),
    ("GET", "/console/chat"): _for(Role.CHAT),
    ("GET", "/console/{rest:path}"): _for(*Role),
    ("GET", "/console/static/{file}"): PUBLIC,
    ("GET", "/console/sign-in"): PUBLIC,
    ("GET", "/console/sign-in/oidc"): PUBLIC,
    ("GET", "/console/sign-in/oidc/callback"): PUBLIC,
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


def refusal(key: Key, rule: Rule) -> str | None:
    """Return the reason why a key may not use a route with this rule; None if it may."""
    if rule.roles is not None and not key.may(rule.roles):
        wanted = ", ".join(sorted(rule.roles | {Role.ADMIN}))
        return f"the key {key.name!r} lacks the role; one of these is needed: {wanted}"
    if rule.operators and key.tenant != DEFAULT:
        return f"the key {key.name!r} belongs to a tenant; this concerns every tenant and is for the operator's keys"
    return None
