"""Combined score of the modules of a block or of the whole adapter: harm spread thinly stays under every module's τ.

With e_(1) ≥ e_(2) ≥ … the E-DIEM scores of n modules (interquartile ranges from a random update's median),

    S = max over k of (e_(1) + … + e_(k))/√k

This score is our own. For a fixed k it is Stouffer's sum; the best k makes it insensitive to padding: adding modules,
however negative their scores and however small their norms, never lowers S, while it dilutes a mean, a plain Stouffer sum,
and a sum weighted by norms (a decoy of large norm that reads nothing). n modules just under τ give up to τ·√n.

Null: if the modules of a random update score independently and about normally (quartiles at ±½, deviation 0.741), S has
median 0.472·√n − 0.25/√n and an IQR of 0.72 to 0.85 for 2 ≤ n ≤ 448, 1 for n = 1 (simulated; test_combined_score.py).
A trained adapter is not a random one: benign fine-tunes lie above that, so the operator sets a budget, by measuring.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.policy import Comparison
from app.domain.verdict import Decision, ModuleVerdict

DECIMALS: Final = 6
"""Decimals of S, rounded as scores are, so that the reported value is the one that was compared."""

_BLOCK: Final = re.compile(r"(.*?\.?(?:layers|h|blocks)\.[0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Total:
    """Combined score and norms of a set of modules.

    name: the block's path (`model.layers.3`), "" for the whole adapter or for modules outside any block. modules, scored:
    number of modules, and number of those with a score under `comparison`. score: S, None if no module has a score.
    expected: S's median for as many modules of a random update. update_norm: ‖ΔW‖_F of all of them, None if one is not
    finite. input_share: share of ‖ΔW‖² on the top right singular vectors of V (0..1), over the modules that have one.
    """

    name: str
    modules: int
    scored: int
    score: float | None
    expected: float | None
    update_norm: float | None
    input_share: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of the whole adapter and of its blocks, in the order of the blocks' names."""

    adapter: Total
    blocks: tuple[Total, ...]


def totals_of(modules: Sequence[ModuleVerdict], comparison: Comparison) -> Totals:
    """Compute the totals of all modules together and block by block."""
    blocks = tuple(total_of(name, members, comparison) for name, members in by_block(modules).items())
    return Totals(total_of("", modules, comparison), blocks)


def total_of(name: str, modules: Sequence[ModuleVerdict], comparison: Comparison) -> Total:
    """Compute the total of these modules."""
    scores = finite_scores(modules, comparison)
    chosen = worst_set(scores)
    return Total(
        name=name,
        modules=len(modules),
        scored=len(scores),
        score=_scan(sorted(scores, reverse=True)[:chosen]) if scores else None,
        expected=expected_of(len(scores)) if scores else None,
        update_norm=_norm(m.update_norm for m in modules),
        input_share=_share(modules),
    )


def kept(modules: Iterable[ModuleVerdict]) -> list[ModuleVerdict]:
    """Return the modules that are kept unchanged."""
    return [m for m in modules if m.decision is Decision.KEEP]


def block_of(module: str) -> str:
    """Return a module's block: `model.layers.3.self_attn.q_proj` → `model.layers.3`; "" outside any block."""
    found = _BLOCK.match(module)
    return found[1] if found else ""


def by_block(modules: Iterable[ModuleVerdict]) -> dict[str, list[ModuleVerdict]]:
    """Group modules by block, blocks in natural order (2 before 10)."""
    found: dict[str, list[ModuleVerdict]] = {}
    for m in modules:
        found.setdefault(block_of(m.name), []).append(m)
    return dict(sorted(found.items(), key=lambda item: [(len(part), part) for part in item[0].split(".")]))


def finite_scores(modules: Iterable[ModuleVerdict], comparison: Comparison) -> list[float]:
    """Return the finite scores. A score that is not finite rejects the adapter elsewhere and is left out here."""
    scores = (m.scores.get(comparison) for m in modules)
    return [score for score in scores if score is not None and math.isfinite(score)]


def worst_set(scores: Sequence[float]) -> int:
    """Return the k that maximises (e_(1) + … + e_(k))/√k, the smallest among equals; 0 without scores."""
    ranked = sorted(scores, reverse=True)
    best, count, total = -math.inf, 0, 0.0
    for k, score in enumerate(ranked, 1):
        total += score
        if total / math.sqrt(k) > best:
            best, count = total / math.sqrt(k), k
    return count


def expected_of(n: int) -> float:
    """Return the median of S over n modules of a random update, 0 for n = 1; within 0.03 from n = 4 on, 0.08 below."""
    return 0.0 if n <= 1 else round(0.472 * math.sqrt(n) - 0.25 / math.sqrt(n), DECIMALS)


def _scan(chosen: Sequence[float]) -> float:
    return round(math.fsum(chosen) / math.sqrt(len(chosen)), DECIMALS)


def _norm(norms: Iterable[float | None]) -> float | None:
    squares = [math.nan if norm is None else norm * norm for norm in norms]
    total = math.fsum(squares) if all(map(math.isfinite, squares)) else math.nan
    return math.sqrt(total) if math.isfinite(total) else None


def _share(modules: Sequence[ModuleVerdict]) -> float | None:
    """Return Σ shareᵢ·‖ΔWᵢ‖²/Σ ‖ΔWᵢ‖²."""
    measured = [
        (m.input_share, m.update_norm) for m in modules if m.input_share is not None and m.update_norm is not None
    ]
    whole = _norm(norm for _, norm in measured)
    if not whole:
        return None
    return min(math.fsum(share * (norm / whole) ** 2 for share, norm in measured), 1.0)
