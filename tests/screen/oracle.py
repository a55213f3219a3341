"""The definitions of method.md, written the obvious way: dense, float64, slow. What the fast path is compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.policy import Comparison


@dataclass(frozen=True)
class Dense:
    """V of one module, dense in float64, and the comparisons taken against it. k: right singular vectors for `input`."""

    v: Tensor
    k: int

    @property
    def c_normalised(self) -> Tensor:
        """C' = C/λ_max(C), C = V·Vᵀ/‖V‖_F."""
        c: Tensor = self.v @ self.v.T / self.v.norm()
        largest: Tensor = torch.linalg.eigvalsh(c).max()
        return c / largest

    @property
    def r_k(self) -> Tensor:
        """The top k right singular vectors, (d_in, k)."""
        basis: Tensor = torch.linalg.svd(self.v)[2]
        return basis[: self.k].T

    def distance(self, delta: Tensor, comparison: Comparison) -> Tensor:
        """The comparison's distance for one update (d_out, d_in) or a stack of them."""
        if comparison is Comparison.PROJECTION:
            apart = self.c_normalised @ delta - delta
        else:
            apart = delta - self.v if comparison is Comparison.ALIGNMENT else delta @ self.r_k
        norm: Tensor = torch.linalg.matrix_norm(apart)
        return norm

    def cosine(self, delta: Tensor) -> float:
        """Safe LoRA's cos(C·ΔW, ΔW)."""
        c_delta = self.v @ self.v.T @ delta / self.v.norm()
        return float((c_delta * delta).sum() / (c_delta.norm() * delta.norm()))

    def null(self, delta: Tensor, comparison: Comparison, n: int, seed: int = 0) -> Tensor:
        """n distances of random updates of ΔW's norm: Gaussian rows of covariance ΔWᵀ·ΔW (`input`: columns, ΔW·ΔWᵀ)."""
        g = torch.Generator().manual_seed(seed)
        u, s, wt = torch.linalg.svd(delta, full_matrices=False)
        found = []
        for at in range(0, n, 2000):
            many = min(2000, n - at)
            z = torch.randn(many, *delta.shape, generator=g, dtype=torch.float64)
            y = (u * s) @ u.T @ z if comparison is Comparison.INPUT else z @ (wt.T * s) @ wt
            y *= delta.norm() / torch.linalg.matrix_norm(y)[:, None, None]
            found.append(self.distance(y, comparison))
        return torch.cat(found)


def median_and_iqr(sample: Tensor) -> tuple[float, float]:
    """Of a sample."""
    low, middle, high = torch.quantile(sample, torch.tensor([0.25, 0.5, 0.75], dtype=sample.dtype)).tolist()
    return middle, high - low


def probability_below_zero(w: list[float], dof: list[float], *, step: float = 1e-3) -> float:
    """P(Σ w_j·χ²_{ν_j} ≤ 0): Imhof's integral over x = ln u on the real axis, where |φ| only falls. Slow, float64."""
    weights = torch.tensor(w, dtype=torch.float64)
    half = 0.5 * torch.tensor(dof, dtype=torch.float64)
    weights = weights / (weights.abs() @ half)
    u = torch.exp(torch.arange(-20.0, 25.0, step, dtype=torch.float64))
    turned, log_size = torch.zeros_like(u), torch.zeros_like(u)
    for weight, share in zip(weights, half, strict=True):
        turned += share * torch.atan(weight * u)
        log_size += 0.5 * share * torch.log1p((weight * u) ** 2)
    return 0.5 - float((torch.sin(turned) * torch.exp(-log_size)).sum()) * step / torch.pi
