"""Leave out the condemned modules."""

from app.domain.lora import Adapter
from app.domain.verdict import Outcome, Verdict


def cut(adapter: Adapter, verdict: Verdict) -> Adapter:
    """Return `adapter` without the modules that `verdict` prunes; possibly with no modules left.

    Raises ValueError (a programmer's error) when the verdict is a rejection or is about another adapter.
    """
    if verdict.outcome is Outcome.REJECTED:
        raise ValueError("a rejected adapter is not pruned, it is refused")
    if [module.name for module in adapter.modules] != [module.name for module in verdict.modules]:
        raise ValueError("this verdict is about another adapter")
    kept = set(verdict.kept)
    return Adapter(tuple(module for module in adapter.modules if module.name in kept), adapter.dtype)
