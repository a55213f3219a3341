"""Emulation of the engine's LoRA arithmetic, compared with the product that was measured.

The engine computes B·(A·x) in the serving dtype: A·x is rounded to that dtype before the product with B (in vLLM's kernels
for processors and in Triton's), sums are float32, and the processor's bfloat16 unit reads subnormal numbers as zero and
writes none. Screening measures B·A in float64. For balanced factors the two agree to √3 unit roundoffs for every x
(balance.py). This module tests the agreement on any factors, so that every update that gets a verdict was compared with
the engine's arithmetic.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.domain.lora import LoraModule
from app.screen.bits import has_subnormal
from app.screen.lora_svd import Update

TOLERANCE: Final = 2.0**-4
"""Largest difference of the engine's output, as a share of the larger of the exact output and of the usual output
for a random input of that length. Rounding A·x to bfloat16 changes balanced factors by up to √3·2⁻⁸; factors as training
leaves them, stored by an older release, were measured at 0.016 (the demo's 252 modules); this allows four times that.
float32 has the same bound: an engine may compute it with TF32's bits."""

CANCELLING: Final = 2.0**-5
"""Largest Σ‖bᵢ‖·‖aᵢ‖ times the unit roundoff, in units of √r·‖ΔW‖_F: rounding A·x then changes B·A·x by at most √r times
this of ‖ΔW‖_F·‖x‖, for any x. Σ‖bᵢ‖·‖aᵢ‖ is at most 1.5·√r·‖ΔW‖_F for balanced factors; if it is more than 8 of that in
bfloat16, or 64 in the other dtypes, factors cancel."""

COARSEST: Final = 2.0**-11
"""Unit roundoff of the coarsest arithmetic that an engine uses for float32 factors: TF32's, equal to float16's."""

RANDOM_INPUTS: Final = 4
ALIGNED_INPUTS: Final = 16
"""Number of inputs tried: random ones, and at most so many each of ΔW's own directions and of V's."""

WIDTHS: Final = 32
"""Widths for which the random inputs are kept: a model's linear modules have a handful."""

SEED: Final = 20_261_129
"""Seed of the random inputs: small whole numbers, the same on any machine and exact in every dtype."""


def objection(module: LoraModule, update: Update, directions: Tensor | None) -> str | None:
    """Return the reason why the engine would not compute `update` = b·a as it was measured; None if it would.

    directions: inputs (d_in, k) that alignment acts on, None if there are none.
    """
    if update.zero:
        return None
    a, b = module.a.double(), module.b.double()
    gram = b.T @ b
    lengths = gram.diagonal().sqrt() * torch.linalg.vector_norm(a, dim=1)  # ‖bᵢ‖·‖aᵢ‖ (r,)
    roundoff = max(torch.finfo(module.a.dtype).eps / 2.0, COARSEST)
    if update.cancelled or not roundoff * float(lengths.sum()) <= CANCELLING * module.rank**0.5 * update.norm:
        return "its factors cancel"
    inputs = _inputs(a.shape[1], update, directions)
    exact = _products(a, inputs)  # (r, m)
    read = exact if not has_subnormal(module.a) else _products(_as_engine_reads(module.a), inputs)
    rounded = _as_engine_reads(read.to(module.a.dtype))
    if not _within(module.b, b, gram, exact, rounded, update.norm * torch.cat([one.lengths for one in inputs])):
        return "the engine's rounding changes what it does"
    return None


def _within(stored: Tensor, b: Tensor, gram: Tensor, exact: Tensor, rounded: Tensor, usual: Tensor) -> bool:
    """Return whether the engine's outputs B·rounded are B·exact to within the tolerance, and none leaves the dtype's range.

    stored: B (d_out, r) in the serving dtype; b: the same in float64; gram: Bᵀ·B. exact, rounded: (r, m). usual: (m,),
    output lengths for random inputs. Lengths come from the Gram matrix unless B has subnormal numbers, which the engine
    drops.
    """
    length = _lengths(gram, exact)
    if has_subnormal(stored):
        served = _as_engine_reads(stored) @ rounded
        lost, largest = (served - b @ exact).norm(dim=0), served.norm(dim=0)
    else:
        lost, largest = _lengths(gram, rounded - exact), _lengths(gram, rounded)
    if not bool((lost <= TOLERANCE * torch.maximum(length, usual)).all()):
        return False
    if float(largest.max()) <= torch.finfo(stored.dtype).max:
        return True
    return bool(torch.isfinite((_as_engine_reads(stored) @ rounded).to(stored.dtype)).all())


def _lengths(gram: Tensor, x: Tensor) -> Tensor:
    """Return ‖B·x‖ for each column of x (r, m), gram = Bᵀ·B: (m,)."""
    return (x * (gram @ x)).sum(0).clamp(min=0.0).sqrt()


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """Inputs x·scale with entries of about 1. x: (d_in, m); lengths: ‖x·scale‖/√d_in, (m,)."""

    x: Tensor
    scale: float
    lengths: Tensor


def _inputs(d_in: int, update: Update, directions: Tensor | None) -> list[_Inputs]:
    """Return random inputs, and ΔW's and V's strongest directions."""
    aligned = [update.a.T @ update.q[:, :ALIGNED_INPUTS]]
    aligned += [] if directions is None else [directions[:, :ALIGNED_INPUTS].double()]
    return [_drawn(d_in), *(_Inputs(x, d_in**0.5, x.new_ones(x.shape[1])) for x in aligned)]


def _products(a: Tensor, inputs: Sequence[_Inputs]) -> Tensor:
    return torch.cat([(a @ one.x) * one.scale for one in inputs], 1)


@functools.lru_cache(maxsize=WIDTHS)
def _drawn(d_in: int) -> _Inputs:
    x = torch.from_numpy(np.random.default_rng(SEED).integers(-128, 128, (d_in, RANDOM_INPUTS)) / 64.0)
    return _Inputs(x, 1.0, x.norm(dim=0) / d_in**0.5)


def _as_engine_reads(x: Tensor) -> Tensor:
    """Return x as the engine reads it, in float64: subnormal numbers are zero."""
    return x.masked_fill(x.abs() < torch.finfo(x.dtype).tiny, 0.0).double()
