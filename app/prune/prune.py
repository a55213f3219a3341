"""Pruning of condemned modules: cut them out, or project out the directions that alignment reads or writes."""

from collections.abc import Callable
from dataclasses import replace

from app.domain.lora import Adapter, LoraModule
from app.domain.singular_vectors import SingularVectors
from app.domain.verdict import Outcome, Verdict


def cut(adapter: Adapter, verdict: Verdict, vectors: Callable[[str], SingularVectors] | None = None) -> Adapter:
    """Return `adapter` with `verdict` applied: pruned modules left out (possibly all of them), projected ones projected.

    vectors: module → singular vectors to project out; called for projected modules only.
    Raises ValueError (a bug in the caller) if the verdict is a rejection or is about another adapter, or if it projects and
    `ends` is None.
    """
    if verdict.outcome is Outcome.REJECTED:
        raise ValueError("a rejected adapter is not pruned, it is refused")
    if [module.name for module in adapter.modules] != [module.name for module in verdict.modules]:
        raise ValueError("this verdict is about another adapter")
    kept, projected = set(verdict.kept), set(verdict.projected)
    if projected and vectors is None:
        raise ValueError("a verdict that projects needs the ends to take out")
    left = []
    for module in adapter.modules:
        if module.name in projected and vectors is not None:
            left.append(project(module, vectors(module.name)))
        elif module.name in kept:
            left.append(module)
    return Adapter(tuple(left), adapter.dtype)


def project(module: LoraModule, vectors: SingularVectors) -> LoraModule:
    """Compute (I − U·Uᵀ)·ΔW·(I − R·Rᵀ), as B ← B − U·(Uᵀ·B) and A ← A − (A·R)·Rᵀ (our own form): same shapes, same rank.

    In float64, then rounded to the module's dtype.
    """
    a, b, r, u = (x.double() for x in (module.a, module.b, vectors.r, vectors.u))
    left = (a - (a @ r) @ r.T, b - u @ (u.T @ b))
    a, b = (x.to(module.a.dtype).contiguous() for x in left)
    return replace(module, a=a, b=b)
