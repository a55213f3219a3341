"""Scores by which a module can be condemned (larger is worse), and the cutting of modules by them."""

import random
from collections.abc import Iterator, Mapping
from typing import Final

import torch

from app.bench.safety.adapter_under_test import Low, Subject
from app.bench.safety.method import Cell
from app.bench.screening.baselines import alignment_matrix, released_score
from app.domain.policy import Comparison

Scores = Mapping[str, float]
"""Module → score, larger is worse. −inf: unknown, cut last."""

FRACTIONS: Final = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of the modules to cut, worst first."""

TAUS: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
"""Thresholds on E-DIEM."""

COSINES: Final = (0.1, 0.2, 0.35, 0.5, 0.7)
"""Thresholds on Safe LoRA's cosine."""

ALPHAS: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Factors by which the whole update is multiplied."""

DRAWS: Final = 3
"""Number of random choices for each fraction."""


def pruning(subject: Subject) -> Iterator[Cell]:
    """Yield every way to cut out whole modules, or to scale all of them down."""
    yield Cell("none", "adapter", "0", subject.lows)
    for draw in range(DRAWS):
        order = random.Random(f"{subject.seed} {draw}")  # noqa: S311 - a control, not a secret
        yield from by_fraction("random", subject, {name: order.random() for name in sorted(subject.lows)})
    for name, scores in all_scores(subject).items():
        yield from by_fraction(f"prune {name}", subject, scores)
    for comparison in Comparison:
        scores = ediem(subject, comparison)
        for tau in TAUS:
            condemned = {name for name, score in scores.items() if not score <= tau}
            yield cut_cell(f"prune E-DIEM {comparison}, tau", f"{tau:g}", subject, condemned)
    yield from safe_lora(subject)
    for factor in ALPHAS:
        yield lower_alpha(subject, factor)


def lower_alpha(subject: Subject, factor: float) -> Cell:
    """Return the adapter with its alpha times `factor`."""
    turned = {name: Low(low.b * factor, low.a) for name, low in subject.lows.items()}
    return Cell("lower alpha", "adapter", f"{factor:g}", turned)


def by_fraction(method: str, subject: Subject, scores: Scores) -> Iterator[Cell]:
    """Cut out the worst modules, an increasing share of them; ties by name."""
    worst = sorted(scores, key=lambda name: (-scores[name], name))
    for fraction in FRACTIONS:
        yield cut_cell(method, f"{fraction:g}", subject, set(worst[: round(fraction * len(worst))]))


def cut_cell(method: str, threshold: str, subject: Subject, condemned: set[str]) -> Cell:
    """Return the adapter without the condemned modules."""
    left = {name: low for name, low in subject.lows.items() if name not in condemned}
    return Cell(method, "module", threshold, left, pruned_share=len(condemned) / len(subject.lows))


def all_scores(subject: Subject) -> dict[str, Scores]:
    """Return every score by the name in its rows."""
    cosine = {name: _or_lowest(_minus(m.cosine)) for name, m in subject.verdicts.items()}
    return {
        "norm": {name: _or_lowest(m.update_norm) for name, m in subject.verdicts.items()},
        "released SPLoRA score": _released(subject),
        "S3LoRA sharpness": {name: sharpness(low) for name, low in subject.lows.items()},
        "Safe LoRA cosine": cosine,
        **{f"E-DIEM {comparison}": ediem(subject, comparison) for comparison in Comparison},
    }


def ediem(subject: Subject, comparison: Comparison) -> Scores:
    """Return the product's own score."""
    return {name: _or_lowest(m.scores[comparison]) for name, m in subject.verdicts.items()}


def sharpness(low: Low) -> float:
    """Return the share of ‖ΔW‖² in its first singular direction: S³LoRA's idea (arXiv 2508.15068, from its abstract), with
    the share in place of the released code's unnormalised value. Sharp updates count as unsafe."""
    s = torch.linalg.svdvals(low.dense.double()).square()
    return float(s[0] / s.sum()) if float(s.sum()) > 0.0 else 0.0


def safe_lora(subject: Subject) -> Iterator[Cell]:
    """Apply Safe LoRA (Hsu et al., NeurIPS 2024): B ← C·B if cos(C·ΔW, ΔW) is low, by threshold and by number."""
    cosine = {name: 1.0 if m.cosine is None else m.cosine for name, m in subject.verdicts.items()}
    for threshold in COSINES:
        chosen = {name for name, value in cosine.items() if value <= threshold}
        yield _projected("Safe LoRA, threshold", f"{threshold:g}", subject, chosen)
    lowest = sorted(cosine, key=lambda name: (cosine[name], name))
    for fraction in (*FRACTIONS, 1.0):
        chosen = set(lowest[: round(fraction * len(lowest))])
        yield _projected("Safe LoRA, number", f"{fraction:g}", subject, chosen)


def _projected(method: str, threshold: str, subject: Subject, chosen: set[str]) -> Cell:
    lows = dict(subject.lows)
    for name in chosen:
        side = subject.alignment.sides[name]
        c = side.s.square() / side.s.norm()  # C = U·diag(s²/‖s‖)·Uᵀ
        lows[name] = Low((side.u * c) @ (side.u.T @ lows[name].b), lows[name].a)
    return Cell(method, "module", threshold, lows)


def _released(subject: Subject) -> Scores:
    """Return the negative of the released score, because the released code prunes the *lowest* scores."""
    found = {}
    for name, low in subject.lows.items():
        side = subject.alignment.sides[name]
        c = alignment_matrix((side.u * side.s) @ side.r.T)
        found[name] = -released_score(c, low.b, low.a)
    return found


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value
