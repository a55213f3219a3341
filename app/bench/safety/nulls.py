"""Other normalisations of the same distances, and the opposite sign: does the choice of null, or of direction, matter?

gram: the product's own null (distances.py). dimension: a random update of the same norm and shape only (full rank), in
closed form up to the spread, which is the same for all modules of a shape. permuted: the same update with its rows (or, for
`input`, its columns) in a random order. type: no null; each distance against the other blocks' modules of its type.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.bench.safety.adapter_under_test import Side, Subject
from app.bench.safety.method import Cell
from app.bench.safety.pruning import Scores, cut_cell, ediem
from app.domain.policy import Comparison

FRACTIONS: Final = (0.25, 0.5, 0.75)
SHUFFLES: Final = 64
"""Number of random orders for the permuted null."""

Distance = Callable[[Tensor, Side], float]


def nulls(subject: Subject) -> Iterator[Cell]:
    """Yield every (comparison, null, sign) at three fractions."""
    for comparison in Comparison:
        for null, scores in _by_null(subject, comparison).items():
            for sign, name in ((1.0, "+"), (-1.0, "-")):
                signed = {module: sign * score for module, score in scores.items()}
                yield from _cut(subject, f"null {null} {comparison} {name}", signed)


def _cut(subject: Subject, method: str, scores: Scores) -> Iterator[Cell]:
    worst = sorted(scores, key=lambda name: (-scores[name], name))
    for fraction in FRACTIONS:
        yield cut_cell(method, f"{fraction:g}", subject, set(worst[: round(fraction * len(worst))]))


def _by_null(subject: Subject, comparison: Comparison) -> dict[str, Scores]:
    distance = _DISTANCES[comparison]
    found = {name: distance(low.dense, subject.alignment.sides[name]) for name, low in subject.lows.items()}
    return {
        "gram": ediem(subject, comparison),
        "dimension": _dimension(subject, comparison, found),
        "permuted": _permuted(subject, comparison, found),
        "type": _by_type(found),
    }


def _projection(update: Tensor, side: Side) -> float:
    c = side.s.square() / side.s[0].square()
    along = side.u.T @ update
    return math.sqrt(max(float(update.square().sum() + ((c * c - 2.0 * c).unsqueeze(1) * along.square()).sum()), 0.0))


def _alignment(update: Tensor, side: Side) -> float:
    return float((update - (side.u * side.s) @ side.r.T).norm())


def _input(update: Tensor, side: Side) -> float:
    return float((update @ side.r[:, :4]).norm())


_DISTANCES: Final[Mapping[Comparison, Distance]] = {
    Comparison.PROJECTION: _projection,
    Comparison.ALIGNMENT: _alignment,
    Comparison.INPUT: _input,
}


def _dimension(subject: Subject, comparison: Comparison, found: Mapping[str, float]) -> Scores:
    """Return the distance relative to that of a random update of the same norm, d/d_random − 1; larger is worse."""
    scores = {}
    for name, low in subject.lows.items():
        side, n2 = subject.alignment.sides[name], float(low.dense.square().sum())
        d_out, d_in = low.dense.shape
        c = side.s.double().square() / side.s[0].double().square()
        expected = {
            Comparison.PROJECTION: n2 * (1.0 + float((c * c - 2.0 * c).sum()) / d_out),
            Comparison.ALIGNMENT: n2 + float(side.s.square().sum()),
            Comparison.INPUT: n2 * 4 / d_in,
        }[comparison]
        scores[name] = found[name] / math.sqrt(expected) - 1.0 if expected > 0.0 else float("-inf")
    return scores


def _permuted(subject: Subject, comparison: Comparison, found: Mapping[str, float]) -> Scores:
    scores = {}
    for name, low in subject.lows.items():
        side, update = subject.alignment.sides[name], low.dense
        axis = 1 if comparison is Comparison.INPUT else 0
        generator = torch.Generator().manual_seed(subject.seed)
        orders = [torch.randperm(update.shape[axis], generator=generator) for _ in range(SHUFFLES)]
        drawn = [_DISTANCES[comparison](update.index_select(axis, order), side) for order in orders]
        scores[name] = _against(found[name], np.array(drawn))
    return scores


def _by_type(found: Mapping[str, float]) -> Scores:
    groups: dict[str, list[float]] = {}
    for name, distance in found.items():
        groups.setdefault(name.rsplit(".", 1)[-1], []).append(distance)
    return {name: _against(distance, np.array(groups[name.rsplit(".", 1)[-1]])) for name, distance in found.items()}


def _against(distance: float, population: np.ndarray) -> float:
    low, middle, high = np.percentile(population, (25, 50, 75))
    return float((distance - middle) / (high - low)) if high > low else float("-inf")
