"""Leave out the condemned modules, or take out of them what reads or writes where alignment does."""

from collections.abc import Callable
from dataclasses import replace

from app.domain.lora import Adapter, LoraModule
from app.domain.singular_vectors import Ends
from app.domain.verdict import Outcome, Verdict


def cut(adapter: Adapter, verdict: Verdict, ends: Callable[[str], Ends] | None = None) -> Adapter:
    """Return `adapter` as `verdict` wants it: without the pruned modules, possibly with none left; the projected projected.

    ends: module → what to take out; asked for projected modules only.
    Raises ValueError (a programmer's error) when the verdict is a rejection or is about another adapter, or when it
    projects and there are no ends.
    """
    if verdict.outcome is Outcome.REJECTED:
        raise ValueError("a rejected adapter is not pruned, it is refused")
    if [module.name for module in adapter.modules] != [module.name for module in verdict.modules]:
        raise ValueError("this verdict is about another adapter")
    kept, projected = set(verdict.kept), set(verdict.projected)
    if projected and ends is None:
        raise ValueError("a verdict that projects needs the ends to take out")
    left = []
    for module in adapter.modules:
        if module.name in projected and ends is not None:
            left.append(project(module, ends(module.name)))
        elif module.name in kept:
            left.append(module)
    return Adapter(tuple(left), adapter.dtype)


def project(module: LoraModule, ends: Ends) -> LoraModule:
    """(I − U·Uᵀ)·ΔW·(I − R·Rᵀ), as B ← B − U·(Uᵀ·B) and A ← A − (A·R)·Rᵀ (ours): same shapes, same rank.

    In float64, then rounded to the module's dtype.
    """
    a, b, r, u = (x.double() for x in (module.a, module.b, ends.r, ends.u))
    left = (a - (a @ r) @ r.T, b - u @ (u.T @ b))
    a, b = (x.to(module.a.dtype).contiguous() for x in left)
    return replace(module, a=a, b=b)
