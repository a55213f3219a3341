"""Baselines: the scores of the released SPLoRA code and of Safe LoRA, reimplemented from their formulas.

For comparison only; no decision depends on these. They form the dense d_out × d_out matrix C = V·Vᵀ/‖V‖_F and dense
products with it, as the published codes do.
"""

from typing import Final

import torch
from torch import Tensor

SAMPLES: Final = 50
"""Pairs in the released code's "empirical population": the measured pair itself, this many times."""

EPSILON: Final = 1e-6
"""Constant that the released code adds to distance and IQR, so that 0/0 becomes 1."""


def alignment_matrix(v: Tensor) -> Tensor:
    """Return C = V·Vᵀ/‖V‖_F: v (d_out, d_in) → (d_out, d_out), in v's dtype."""
    c: Tensor = v @ v.T / v.norm()
    return c


def released_score(c: Tensor, b: Tensor, a: Tensor) -> float:
    """Return the released SPLoRA score of one module: c (d_out, d_out), b (d_out, r), a (r, d_in), all of one dtype.

    With X = C·B·A, Y = B·A: ((‖X − Y‖ + ε − mean)/(IQR + ε) − v_m)/(v_M − v_m)·(v_M − v_m), where mean and IQR are of
    the same distance 50 times, v_M = Q3(X) − Q1(X), v_m = Q1(X) − Q1(Y). In exact arithmetic the first term is ε/ε = 1:
    the score is 1 − (Q1(X) − Q1(Y)) and the distance cancels (method.md). Raises RuntimeError above 2²⁴ elements, as
    torch.quantile does.
    """
    x, y = c @ b @ a, b @ a
    distance = torch.linalg.matrix_norm(x - y) + EPSILON
    population = torch.stack([torch.linalg.matrix_norm(x - y) for _ in range(SAMPLES)])
    iqr = torch.quantile(population, 0.75) - torch.quantile(population, 0.25) + EPSILON
    q1_x, q3_x, q1_y = torch.quantile(x, 0.25), torch.quantile(x, 0.75), torch.quantile(y, 0.25)
    largest, smallest = q3_x - q1_x, q1_x - q1_y
    spread = largest - smallest
    return float(((distance - population.mean()) / iqr - smallest) / spread * spread)


def safe_lora_cosine(c: Tensor, b: Tensor, a: Tensor) -> float:
    """Return Safe LoRA's cos(C·ΔW, ΔW) (Hsu et al., NeurIPS 2024), dense; arguments as for `released_score`."""
    delta = b @ a
    projected = c @ delta
    return float((projected * delta).sum() / (projected.norm() * delta.norm()))
