"""Leave out the condemned modules, or take out of them what acts on alignment's inputs."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from app.domain.lora import Adapter, LoraModule
from app.domain.verdict import Outcome, Verdict


def cut(adapter: Adapter, verdict: Verdict, directions: Callable[[str], Tensor] | None = None) -> Adapter:
    """Return `adapter` as `verdict` wants it: without the pruned modules, possibly with none left; inputs projected.

    directions: module → R_k (d_in, k), orthonormal columns: the inputs to project out; asked for projected modules only.
    Raises ValueError (a programmer's error) when the verdict is a rejection or is about another adapter, or when it
    projects and there are no directions.
    """
    if verdict.outcome is Outcome.REJECTED:
        raise ValueError("a rejected adapter is not pruned, it is refused")
    if [module.name for module in adapter.modules] != [module.name for module in verdict.modules]:
        raise ValueError("this verdict is about another adapter")
    kept, projected = set(verdict.kept), set(verdict.projected)
    if projected and directions is None:
        raise ValueError("a verdict that projects needs the directions")
    left = []
    for module in adapter.modules:
        if module.name in projected and directions is not None:
            left.append(project(module, directions(module.name)))
        elif module.name in kept:
            left.append(module)
    return Adapter(tuple(left), adapter.dtype)


def project(module: LoraModule, r: Tensor) -> LoraModule:
    """ΔW·(I − R·Rᵀ), as A ← A − (A·R)·Rᵀ (ours); r (d_in, k). In float64, rounded to A's dtype: same shape, same rank."""
    a, r = module.a.double(), r.double()
    return replace(module, a=(a - (a @ r) @ r.T).to(module.a.dtype).contiguous())
