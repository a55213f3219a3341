"""Rules in force: everything that a verdict depends on besides the uploaded bytes, replaced as a whole when it changes."""

from collections.abc import Callable

from app.evaluate.plan import Plan


class RulesInForce:
    """Holder of the plan for evaluating behaviour, and of the key of all rules. Any thread may read it."""

    def __init__(self, plan: Plan | None, parameters_of: Callable[[Plan | None], str]) -> None:
        """parameters_of: returns the key of all rules with this plan."""
        self._parameters_of = parameters_of
        self._rules = plan, parameters_of(plan)
        self._measured_alike = frozenset({self.parameters})

    @property
    def plan(self) -> Plan | None:
        """Plan for evaluating behaviour; None: behaviour is not looked at."""
        return self._rules[0]

    @property
    def parameters(self) -> str:
        """Key of everything a verdict depends on besides the bytes; versions of other parameters are measured again."""
        return self._rules[1]

    @property
    def evaluation(self) -> str | None:
        """Key of the evaluation that a version must have passed before it gets its name; None: none."""
        plan = self.plan
        return None if plan is None else plan.key

    @property
    def note(self) -> str:
        """Behaviour that uploads are asked for, in a few words for operators."""
        plan = self.plan
        return "not looked at" if plan is None else plan.note

    @property
    def measured_alike(self) -> frozenset[str]:
        """Keys of all rules in force since the start: they differ in the plan, and measure factors in the same way."""
        return self._measured_alike

    def replace(self, plan: Plan | None) -> bool:
        """Put another plan in force. Returns whether that changes a rule."""
        before = self.parameters
        self._rules = plan, self._parameters_of(plan)
        self._measured_alike |= {self.parameters}
        return self.parameters != before
