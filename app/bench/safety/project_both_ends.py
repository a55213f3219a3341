"""Projection of both ends of V, the inputs and outputs of alignment; and the gateway's own policies, by its own code."""

from collections.abc import Iterator
from typing import Final

from app.bench.safety.adapter_under_test import Low, Side, Subject
from app.bench.safety.method import Cell
from app.bench.safety.projection_variants import by_energy, project
from app.domain.policy import DEFAULT_ENERGY, DEFAULT_TOP_K, Action, Policy
from app.domain.verdict import Outcome
from app.prune.prune import cut
from app.screen.screen import screen

INPUTS: Final = (1, 2, 3, 4, 5)
OUTPUTS: Final = (1, 2)
ENERGIES: Final = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7)
TAUS: Final = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)


def both_ends(subject: Subject) -> Iterator[Cell]:
    """Yield ΔW ← (I − U_k'·U_k'ᵀ)·ΔW·(I − R_k·R_kᵀ), k fixed or by V's energy; then complete policies."""
    for inputs in INPUTS:
        for outputs in OUTPUTS:
            lows = {
                name: no_outputs(project(low, side.r[:, :inputs]), side, outputs)
                for name, low, side in _with_sides(subject)
            }
            yield Cell("project inputs and outputs", "adapter", f"k={inputs} k'={outputs}", lows)
    for energy in ENERGIES:
        correct = by_energy(energy)
        lows = {name: no_outputs(correct(low, side), side, 1) for name, low, side in _with_sides(subject)}
        yield Cell("project inputs and outputs, k by energy of V", "module", f"{energy:g} k'=1", lows)
    yield from _policies(subject)


def no_outputs(low: Low, side: Side, k: int) -> Low:
    """Return (I − U_k·U_kᵀ)·ΔW, as B ← B − U·(Uᵀ·B)."""
    u = side.u[:, :k]
    return Low(low.b - u @ (u.T @ low.b), low.a)


def _policies(subject: Subject) -> Iterator[Cell]:
    """Yield the gateway's results, bounds and rejections included; a rejected adapter is not served: no harm, no skill."""
    for k in INPUTS:
        policy = Policy(action=Action.PROJECT, tau=0.0, top_k=k)
        yield sanitised("gateway, action project", f"k={k} tau=0", subject, policy)
    for tau in TAUS:
        policy = Policy(action=Action.PRUNE, tau=tau)
        yield sanitised("gateway, action prune", f"tau={tau:g}", subject, policy)


def policies_by_energy(subject: Subject) -> Iterator[Cell]:
    """Yield the gateway's results with its default inputs, by their share of ‖V‖²; pruning swept over τ."""
    for energy in ENERGIES:
        policy = Policy(action=Action.PROJECT, tau=0.0, top_k=DEFAULT_TOP_K, energy=energy)
        yield sanitised("gateway, action project, k by energy", f"{energy:g} tau=0", subject, policy)
    for tau in TAUS:
        policy = Policy(action=Action.PRUNE, tau=tau, top_k=DEFAULT_TOP_K, energy=DEFAULT_ENERGY)
        yield sanitised("gateway, action prune, k by energy", f"tau={tau:g}", subject, policy)


def sanitised(method: str, threshold: str, subject: Subject, policy: Policy) -> Cell:
    """Return the adapter after the gateway's policy; a rejected one is empty."""
    reference = subject.alignment.reference
    verdict = screen(subject.adapter, reference, policy, workers=1)
    if verdict.outcome is Outcome.REJECTED:
        return Cell(method, "module", threshold, {}, pruned_share=1.0)
    left = cut(subject.adapter, verdict, lambda name: reference.singular_vectors(name, policy))
    share = len(verdict.pruned) / len(verdict.modules)
    return Cell(method, "module", threshold, {m.name: Low(m.b.float(), m.a.float()) for m in left.modules}, share)


def _with_sides(subject: Subject) -> Iterator[tuple[str, Low, Side]]:
    for name, low in subject.lows.items():
        yield name, low, subject.alignment.sides[name]
