"""Use case of a tenant's own rules: a policy stricter than the operator's, and canaries beside the operator's."""

from dataclasses import dataclass
from typing import Final

from app.domain.errors import BAD_BATTERY, BAD_REQUEST, WEAKER_POLICY, Refused, Unavailable
from app.domain.policy import Policy
from app.domain.policy_override import PolicyOverride
from app.evaluate.battery import Battery, parse
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.screen.reference.open import check_policy

MAX_CANARIES: Final = 1000
"""Most canaries of a tenant: each may be put to every correction of each of its uploads."""

MAX_BATTERY_BYTES: Final = 1 << 20
"""Most bytes of a tenant's canaries: every gateway holds those of all tenants."""


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """Policy of a tenant: its override, and the operator's policy with that applied."""

    override: PolicyOverride
    in_force: Policy


class TenantRules:
    """Rules that tenants have beside the operator's. They are in the catalogue; every gateway follows them there."""

    def __init__(self, components: Components, follower: CatalogueFollower) -> None:
        self._components = components
        self._follower = follower

    async def policy(self, tenant: str) -> TenantPolicy:
        """Return the policy of a tenant, as it is in the catalogue. Raises Unavailable."""
        c = self._components
        stored = await c.pools.reading(c.catalogue.tenant_rules.of, tenant)
        return TenantPolicy(stored.override, stored.override.applied(c.rules.operators.policy))

    async def set_policy(self, tenant: str, override: PolicyOverride) -> None:
        """Replace the override of a tenant; its versions are measured again, and withheld until they passed.

        In force here when this returns, elsewhere within a second. Raises Refused: WEAKER_POLICY for a value weaker than
        the operator's; BAD_REQUEST if the reference does not hold what it takes out. Raises Unavailable.
        """
        c, policy = self._components, self._components.rules.operators.policy
        if (found := override.weaker(policy)) is not None:
            field, wanted, operators = found
            why = f"{field} {wanted} is weaker than {operators}, the operator's"
            raise Refused(WEAKER_POLICY, why, param=field)
        try:
            await c.pools.reading(check_policy, c.reference, override.applied(policy), "this policy")
        except Unavailable as error:
            raise Refused(BAD_REQUEST, error.message, param="project_outputs") from error
        await c.pools.store(c.catalogue.tenant_rules.set_override, tenant, override)
        await self._follower.refresh()

    async def battery(self, tenant: str) -> Battery | None:
        """Return the canaries of a tenant, as they are in the catalogue; None if it has none. Raises Unavailable."""
        c = self._components
        stored = await c.pools.reading(c.catalogue.tenant_rules.of, tenant)
        return None if stored.battery is None else await c.pools.reading(parse, stored.battery.encode())

    async def set_battery(self, tenant: str, lines: bytes | None) -> None:
        """Replace the canaries of a tenant; None removes them. Its versions are asked again, one after another.

        In force here when this returns, elsewhere within a second. Raises Refused: BAD_BATTERY; BAD_REQUEST if this
        gateway asks no canaries. Raises Unavailable.
        """
        c, text = self._components, None
        if lines is not None:
            if c.rules.operators.plan is None:
                raise Refused(BAD_REQUEST, "this gateway has no canaries (GATEWAY_CANARIES)")
            if len((await c.pools.store(parse, lines)).canaries) > MAX_CANARIES:
                raise Refused(BAD_BATTERY, f"a tenant has at most {MAX_CANARIES} canaries")
            text = lines.decode()
        await c.pools.store(c.catalogue.tenant_rules.set_battery, tenant, text)
        await self._follower.refresh()
