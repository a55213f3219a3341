"""Calibration of a model's confidence: two standard measures over answers with a confidence each."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 10
"""Number of bins, of equal width, for the calibration error (Guo et al., ICML 2017, use 15 on far more answers)."""


def auarc(right: NDArray[np.bool_], confidence: NDArray[np.float64]) -> float:
    """Return the area under the accuracy–rejection curve: mean accuracy of the n most confident answers, n = 1 … N.

    Larger is better. With accuracy p the best possible (all right answers before all wrong ones) is p − p·ln p for large N,
    and 1 if every answer is right. Answers of equal confidence count with their group's mean accuracy each. Raises
    ValueError if there are no answers or a confidence is not finite.
    """
    _check(right, confidence)
    order = np.argsort(-confidence, kind="stable")
    hits, sure = right[order].astype(np.float64), confidence[order]
    starts = np.flatnonzero(np.r_[True, sure[1:] != sure[:-1]])
    sizes = np.diff(np.r_[starts, len(sure)])
    fair = np.repeat(np.add.reduceat(hits, starts) / sizes, sizes)
    return float((np.cumsum(fair) / np.arange(1, len(fair) + 1)).mean())


def ece(right: NDArray[np.bool_], confidence: NDArray[np.float64]) -> float:
    """Return the expected calibration error: mean |accuracy − confidence| over `BINS` bins, weighted by size. 0 is best."""
    _check(right, confidence)
    if confidence.min() < 0.0 or confidence.max() > 1.0 + 1e-9:
        raise ValueError("a confidence is a probability")
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    gap = np.abs(np.bincount(bins, right, BINS) - np.bincount(bins, confidence, BINS))
    return float(gap.sum() / count.sum())


def _check(right: NDArray[np.bool_], confidence: NDArray[np.float64]) -> None:
    if len(right) == 0 or len(right) != len(confidence):
        raise ValueError("as many confidences as answers, and at least one")
    if not np.isfinite(confidence).all():
        raise ValueError("a confidence is not finite")
