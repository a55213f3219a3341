"""The engine's LoRA arithmetic, written apart from the product's: sums in float32, x·A rounded, no subnormal numbers."""

import torch
from torch import Tensor


def flushed(x: Tensor) -> Tensor:
    """Subnormal numbers as zero."""
    return torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.zeros_like(x), x)


def served(b: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """B·(A·x) for inputs x (d_in, m) as a bfloat16 or float16 unit computes it: (d_out, m) in float64."""
    dtype = a.dtype
    a, b, x = (flushed(one.to(dtype)).float() for one in (a, b, x))
    shrunk = flushed((a @ x).to(dtype)).float()
    return (b @ shrunk).double()


def strays(b: Tensor, a: Tensor, x: Tensor) -> float:
    """Largest distance of what is served from b·a·x in float64, as a share of it, or of a random input's if more."""
    x = flushed(x.to(a.dtype)).double()
    exact = b.double() @ (a.double() @ x)
    usual = float((b.double() @ a.double()).norm()) * x.norm(dim=0) / x.shape[0] ** 0.5
    size = torch.maximum(exact.norm(dim=0), usual)
    apart = (served(b, a, x) - exact).norm(dim=0)
    return float((apart / size.clamp(min=1e-300)).nan_to_num(nan=float("inf")).max())
