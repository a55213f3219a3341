"""Ways to correct an update instead of cutting it out: projecting out alignment's inputs, and restoring alignment.

V = U·S·Rᵀ. R_k: the first k columns of R, the inputs alignment acts on most (method.md, "Beyond pruning"; ours).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import torch
from torch import Tensor

from app.bench.safety.adapter_under_test import Low, Side, Subject
from app.bench.safety.method import Cell
from app.domain.policy import Comparison

DIRECTIONS: Final = 16
"""Number of singular directions of V considered: as many as a reference keeps (`top_k` of its builder)."""

KS: Final = (1, 2, 3, 4, 6, 8, 12, 16)
ENERGIES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RATIOS: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
LEFT: Final = (1.0, 0.5, 0.25, 0.1, 0.05)

Correct = Callable[[Low, Side], Low]


def correcting(subject: Subject) -> Iterator[Cell]:
    """Yield every correction with its parameters."""
    for k in KS:
        yield _cell("project inputs", "adapter", f"k={k}", subject, _project_first(k))
    yield from _condemned_only(subject)
    for energy in ENERGIES:
        yield _cell("project inputs, k by energy of V", "module", f"{energy:g}", subject, by_energy(energy))
    for ratio in RATIOS:
        yield _cell("project single inputs", "direction", f"{ratio:g}", subject, _project_single(ratio))
    for left in LEFT:
        yield _cell("project inputs, k by what is left", "module", f"{left:g}", subject, _project_until(left))
    for ratio in RATIOS:
        yield _cell("drop directions of the update", "direction", f"{ratio:g}", subject, _drop_directions(ratio))
    for k in (2, 4, 8, 16):
        yield _cell("project both sides", "adapter", f"k={k}", subject, partial(two_sided, k=k))
    for k in (4, 16, 64):
        yield _cell("undo what opposes V", "direction", f"k={k}", subject, partial(oppose, k=k))
    yield from _restoring(subject)


def _restoring(subject: Subject) -> Iterator[Cell]:
    for k in (1, 4, 16):
        for beta in (0.2, 0.5, 1.0):
            yield restored(Cell("restore", "adapter", f"k'={k} b={beta:g}", subject.lows), subject, k, beta)
    for k in (1, 2, 4, 6, 8):
        for beta in (0.3, 0.5):
            label = f"k={k} k'=4 b={beta:g}"
            cell = _cell("project + restore", "adapter", label, subject, _project_first(k))
            yield restored(cell, subject, 4, beta)
    for energy in (0.5, 0.7, 0.8, 0.9):
        label = f"{energy:g} k'=4 b=0.3"
        cell = _cell("project by energy + restore", "module", label, subject, by_energy(energy))
        yield restored(cell, subject, 4, 0.3)


def _condemned_only(subject: Subject) -> Iterator[Cell]:
    """Correct only modules whose E-DIEM `input` is above τ: the effect of a policy that does not touch the others."""
    scores = {name: m.scores[Comparison.INPUT] for name, m in subject.verdicts.items()}
    for k in (4, 8):
        for tau in (0.0, 1.0, 2.0, 3.0):
            lows = {
                name: low if (scores[name] or 0.0) <= tau else project(low, subject.alignment.sides[name].r[:, :k])
                for name, low in subject.lows.items()
            }
            yield Cell("project inputs of condemned", "module", f"k={k} tau={tau:g}", lows)


def project(low: Low, r: Tensor) -> Low:
    """Return ΔW·(I − R·Rᵀ): A ← A − (A·R)·Rᵀ, r (d_in, k) orthonormal."""
    return Low(low.b, low.a - (low.a @ r) @ r.T)


def two_sided(low: Low, side: Side, k: int) -> Low:
    """Return ΔW − U_k·U_kᵀ·ΔW·R_k·R_kᵀ; the rank grows by k."""
    u, r = side.u[:, :k], side.r[:, :k]
    core = (u.T @ low.b) @ (low.a @ r)  # (k, k)
    return Low(torch.cat([low.b, -u @ core], 1), torch.cat([low.a, r.T], 0))


def oppose(low: Low, side: Side, k: int) -> Low:
    """Remove only the components opposed to V: c_j = u_jᵀ·ΔW·r_j if it is negative; the rank grows by k."""
    u, r = side.u[:, :k], side.r[:, :k]
    along = ((u.T @ low.b) * (low.a @ r).T).sum(1)  # (k,)
    return Low(torch.cat([low.b, u * -along.clamp(max=0.0)], 1), torch.cat([low.a, r.T], 0))


def restored(cell: Cell, subject: Subject, k: int, beta: float) -> Cell:
    """Add β times the best rank-k part of V to every module, including those without an update in the adapter."""
    lows = {}
    for name, side in subject.alignment.sides.items():
        part, low = side.best(k), cell.lows.get(name)
        b, a = part.b * beta, part.a
        lows[name] = Low(b, a) if low is None else Low(torch.cat([low.b, b], 1), torch.cat([low.a, a], 0))
    return Cell(cell.method, cell.unit, cell.threshold, lows, cell.pruned_share)


def _project_first(k: int) -> Correct:
    return lambda low, side: project(low, side.r[:, :k])


def by_energy(share: float) -> Correct:
    """Return a correction with k: the fewest directions that hold this share of ‖V‖²."""

    def correct(low: Low, side: Side) -> Low:
        held = side.s.square().cumsum(0) / side.s.square().sum()
        return project(low, side.r[:, : int((held < share).sum()) + 1])

    return correct


def _ratios(low: Low, r: Tensor) -> Tensor:
    """Return ‖ΔW·r_j‖² relative to its value for a random update of that norm in one direction, ‖ΔW‖²/d_in."""
    on = (low.b @ (low.a @ r)).square().sum(0)
    return on * r.shape[0] / low.dense.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def _project_single(ratio: float) -> Correct:
    """Return a correction of those first directions that the update uses over `ratio` times as much as a random one."""

    def correct(low: Low, side: Side) -> Low:
        r = side.r[:, :DIRECTIONS]
        return project(low, r[:, _ratios(low, r) > ratio])

    return correct


def _project_until(left: float) -> Correct:
    """Return a correction with k: the fewest directions that leave at most `left` of a random update's energy on the first
    DIRECTIONS."""

    def correct(low: Low, side: Side) -> Low:
        r = side.r[:, :DIRECTIONS]
        on = _ratios(low, r)
        after = on.sum() - on.cumsum(0)  # the energy left once the first 1, 2, … are removed
        fits = (torch.cat([on.sum().view(1), after]) <= left * r.shape[1]).nonzero()
        return project(low, r[:, : int(fits[0])] if len(fits) else r)

    return correct


def _drop_directions(ratio: float) -> Correct:
    """Return a correction that drops ΔW's singular directions with over `ratio` times a random one's input on R_4."""

    def correct(low: Low, side: Side) -> Low:
        u, s, wt = torch.linalg.svd(low.dense, full_matrices=False)
        n = low.a.shape[0]
        r = side.r[:, :4]
        share = (wt[:n] @ r).square().sum(1) * r.shape[0] / r.shape[1]
        keep = share <= ratio
        return Low(u[:, :n][:, keep] * s[:n][keep], wt[:n][keep])

    return correct


def _cell(method: str, unit: str, threshold: str, subject: Subject, correct: Correct) -> Cell:
    lows = {name: correct(low, subject.alignment.sides[name]) for name, low in subject.lows.items()}
    return Cell(method, unit, threshold, lows)
