"""Policy override of a tenant: values in the place of the operator's, none of which is weaker.

Only fields with a clear order can be overridden: a stricter value condemns, removes or rejects no less. The others decide
how a module is measured. A rejection by the operator's policy stands (`decide` takes it as a bar).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from app.domain.policy import Action, Policy, Unscorable

_MILD_TO_STRICT: Final = (Unscorable.KEEP, Unscorable.PRUNE, Unscorable.REJECT)


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """Values of one tenant; None: the operator's."""

    tau: float | None = None
    project_outputs: int | None = None
    max_removed_share: float | None = None
    max_pruned: int | None = None
    max_pruned_share: float | None = None
    reject_tau: float | None = None
    max_update_ratio: float | None = None
    unscorable: Unscorable | None = None
    max_block_score: float | None = None
    max_adapter_score: float | None = None

    def applied(self, policy: Policy) -> Policy:
        """Return the operator's policy with the stricter of both values in each field.

        A module spared by a cap is then a reason to reject: it would depend on the others which one is spared. A tau
        below 0 counts as 0 for projecting.
        """
        if self == NO_OVERRIDE:
            return policy
        values = {one.name: _stricter(one.name, getattr(self, one.name), policy) for one in fields(self)}
        return replace(policy, **values, cap_keeps=False)

    def weaker(self, policy: Policy) -> tuple[str, Any, Any] | None:
        """Return the first field whose value is weaker than the operator's, with both values; None if none is."""
        for name in FIELDS:
            wanted = getattr(self, name)
            if wanted is not None and _stricter(name, wanted, policy) != _floored(name, wanted, policy):
                return name, wanted, getattr(policy, name)
        return None


NO_OVERRIDE: Final = PolicyOverride()

FIELDS: Final = tuple(one.name for one in fields(PolicyOverride))


def override_from(values: Mapping[str, Any]) -> PolicyOverride:
    """Parse an override from plain JSON values. Raises ValueError or TypeError if it is not one."""
    unscorable = values.get("unscorable")
    return PolicyOverride(**{**values, "unscorable": None if unscorable is None else Unscorable(unscorable)})


def _stricter(name: str, wanted: Any, policy: Policy) -> Any:
    operators = getattr(policy, name)
    if wanted is None:
        return operators
    wanted = _floored(name, wanted, policy)
    if operators is None:  # no bound at all, but for reject_tau: then what is cut out is counted
        return None if name == "reject_tau" else wanted
    stricter: Callable[..., Any] = max if name == "project_outputs" else min
    return max(operators, wanted, key=_MILD_TO_STRICT.index) if name == "unscorable" else stricter(operators, wanted)


def _floored(name: str, wanted: Any, policy: Policy) -> Any:
    return max(0.0, wanted) if name == "tau" and policy.action is Action.PROJECT else wanted
