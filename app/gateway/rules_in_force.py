"""Rules in force: everything that a verdict depends on besides the uploaded bytes, replaced as a whole when it changes.

A tenant may have rules of its own: a policy that is stricter than the operator's, canaries beside the operator's.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from app.domain.policy import Policy
from app.domain.policy_override import NO_OVERRIDE, PolicyOverride
from app.evaluate.battery import Battery, parse
from app.evaluate.plan import Plan


@dataclass(frozen=True, slots=True)
class OwnRules:
    """Rules that a tenant has beside the operator's. battery: its canaries; None: none of its own."""

    override: PolicyOverride = NO_OVERRIDE
    battery: Battery | None = None


NOTHING_OWN = OwnRules()


def own_rules(override: PolicyOverride, battery: str | None) -> OwnRules:
    """Return the rules that a tenant has by itself. battery: JSON lines. Raises Refused BAD_BATTERY."""
    return OwnRules(override, None if battery is None else parse(battery.encode()))


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules for one tenant's versions.

    policy: the operator's, with the tenant's `override` applied. plan: for evaluating behaviour; None: behaviour is not
    looked at. parameters: key of everything a verdict depends on besides the bytes; versions of other parameters are
    measured again.
    """

    policy: Policy
    override: PolicyOverride
    plan: Plan | None
    parameters: str

    @property
    def evaluation(self) -> str | None:
        """Key of the evaluation that a version must have passed before it gets its name; None: none."""
        return None if self.plan is None else self.plan.key


class RulesInForce:
    """Holder of the operator's rules, and of those tenants' that have any of their own. Any thread may read and
    change it."""

    def __init__(self, policy: Policy, plan: Plan | None, parameters_of: Callable[[Policy, Plan | None], str]) -> None:
        """parameters_of: returns the key of all rules with this policy and plan."""
        self._policy = policy
        self._parameters_of = parameters_of
        self._own: Mapping[str, OwnRules] = {}
        self._changing: Final = threading.Lock()
        self._alike: defaultdict[Policy, frozenset[str]] = defaultdict(frozenset)
        self._overrides: dict[str, PolicyOverride] = {}  # by the key of all rules in force since the start
        self._set(plan)

    @property
    def operators(self) -> Rules:
        """The operator's rules, which hold for every tenant without its own."""
        return self._rules[0]

    @property
    def of_tenants(self) -> Mapping[str, Rules]:
        """Tenant → its rules, of those that have any of their own. Another mapping whenever rules have changed."""
        return self._rules[1]

    def of(self, tenant: str) -> Rules:
        """Return the rules for a tenant's versions."""
        operators, tenants = self._rules
        return tenants.get(tenant, operators)

    @property
    def note(self) -> str:
        """Behaviour that uploads are asked for, in a few words for operators."""
        plan = self.operators.plan
        return "not looked at" if plan is None else plan.note

    def measured_alike(self, tenant: str) -> frozenset[str]:
        """Return the keys of all rules in force since the start that have the policy of this tenant's: they differ in the
        plan, and measure factors in the same way."""
        return self._alike[self.of(tenant).policy]

    def override_at(self, parameters: str) -> PolicyOverride:
        """Return the override among rules that are in force, or were since the start, by their key. Raises KeyError.

        A version is measured by the rules that were in force when it began, which it names.
        """
        return self._overrides[parameters]

    def replace(self, plan: Plan | None) -> bool:
        """Put another plan in force. Returns whether that changes a rule. Blocking: it makes every tenant's plan anew."""
        with self._changing:
            before = self.operators.parameters
            self._set(plan)
            return self.operators.parameters != before

    def replace_own(self, changed: Mapping[str, OwnRules]) -> None:
        """Put other rules of these tenants in force. Blocking."""
        with self._changing:
            operators, tenants = self._rules
            own, others = {**self._own, **changed}, {one: rules for one, rules in tenants.items() if one not in changed}
            self._own = {tenant: rules for tenant, rules in own.items() if rules != NOTHING_OWN}
            made = {tenant: self._with(operators, self._own[tenant]) for tenant in changed if tenant in self._own}
            self._put(operators, {**others, **made})

    def _set(self, plan: Plan | None) -> None:
        operators = Rules(self._policy, NO_OVERRIDE, plan, self._parameters_of(self._policy, plan))
        self._put(operators, {tenant: self._with(operators, own) for tenant, own in self._own.items()})

    def _put(self, operators: Rules, tenants: Mapping[str, Rules]) -> None:
        for rules in (operators, *tenants.values()):
            self._alike[rules.policy] |= {rules.parameters}
            self._overrides[rules.parameters] = rules.override
        self._rules = operators, tenants

    def _with(self, operators: Rules, own: OwnRules) -> Rules:
        policy = own.override.applied(operators.policy)
        plan = None if operators.plan is None else operators.plan.for_tenant(policy, own.battery)
        return Rules(policy, own.override, plan, self._parameters_of(policy, plan))
