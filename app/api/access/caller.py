"""Caller of a request, and the dependency that admits it before its body is read."""

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Path, Request

from app.api.access.keys import ANYBODY, authorization
from app.api.access.rate_limits import FLOWS
from app.api.access.rules import OPERATOR_ONLY, ROUTES, refusal
from app.api.dependencies import context_of
from app.domain.api_keys import NOBODY, Key, Uploader
from app.domain.errors import BAD_REQUEST, FORBIDDEN, Refused
from app.domain.tenants import DEFAULT, Reach, check_tenant, full_name
from app.observe.request_id import KEY_NAME

TENANT: Final = "tenant"
"""Parameter of the path or the query that names the tenant in which the operator acts."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Caller of one request: its key, and the tenant in which it acts, which is the key's unless it is the operator's."""

    key: Key
    tenant: str

    @property
    def uploader(self) -> Uploader:
        """Owner and rights of the caller's uploads; those of an open gateway have no owner."""
        return NOBODY if self.key is ANYBODY and self.tenant == DEFAULT else self.key.uploader(self.tenant)

    @property
    def reach(self) -> Reach:
        """Adapters that the caller can name in `model`."""
        return Reach(self.tenant, self.key.operator)

    @property
    def cache(self) -> str | None:
        """Name of the engine's prompt cache that the caller's requests share: the tenant's, in `default` the owner's."""
        return self.uploader.owner if self.tenant == DEFAULT else full_name(self.tenant, "")

    @property
    def sees(self) -> str | None:
        """Tenant whose usage, audit log and trends the caller sees; None: everyone's, for the operator who named none."""
        return None if self.key.operator and self.tenant == DEFAULT else self.tenant

    def full(self, plain: str) -> str:
        """Return the full name of an adapter of the tenant."""
        return full_name(self.tenant, plain)

    def address(self, path: str) -> str:
        """Return the address of a route for this caller, who may act in another tenant."""
        return path if self.tenant == self.key.tenant else f"{path}?{TENANT}={self.tenant}"

    def permits(self, method: str, route: str) -> bool:
        """Return whether the caller may use a route."""
        return refusal(self.key, ROUTES.get((method, route), OPERATOR_ONLY)) is None


async def guarded(request: Request) -> None:
    """Admit the caller by the route's rule.

    Raises Refused UNAUTHORIZED, FORBIDDEN, RATE_LIMITED or BAD_REQUEST, Unavailable ISSUER_AWAY.
    """
    ctx = context_of(request)
    rule = ROUTES.get((request.method, request.scope["route"].path), OPERATOR_ONLY)
    if rule.roles is None:
        return
    key = await ctx.keys.admit(authorization(request.headers))
    KEY_NAME.set(key.id)
    request.state.key, request.state.rule = key, rule
    if (why := refusal(key, rule)) is not None:
        raise Refused(FORBIDDEN, why)
    request.state.caller = Caller(key, _tenant_of(request, key))
    if rule.rate is not None:
        ctx.rates.take(key.id, rule.rate)
        await ctx.meter.count(key.tenant, FLOWS[rule.rate])


def _tenant_of(request: Request, key: Key) -> str:
    """Return the tenant in which the caller acts: the operator may name one, in path or query. Raises Refused."""
    wanted: str | None = request.path_params.get(TENANT)
    if wanted is None and request.scope["query_string"]:
        wanted = request.query_params.get(TENANT)
    if wanted is None or wanted == key.tenant:
        return key.tenant
    if not key.operator:  # for every other label alike, also if there is no such tenant
        raise Refused(FORBIDDEN, f"the key {key.name!r} acts in its own tenant only", param=TENANT)
    try:
        check_tenant(wanted)
    except ValueError as error:
        raise Refused(BAD_REQUEST, str(error), param=TENANT) from error
    return wanted


def caller_of(request: Request) -> Caller:
    """Return the caller that `guarded` admitted."""
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


def about(request: Request, target: str) -> None:
    """Note the full name of the adapter or key that a request is about, for the audit log."""
    request.state.target = target


async def _named(name: Annotated[str, Path()], request: Request) -> str:
    full = caller_of(request).full(name)
    about(request, full)
    return full


AdapterInPath = Annotated[str, Depends(_named)]
"""Full name of the adapter that the path names; `guarded` has run before."""
