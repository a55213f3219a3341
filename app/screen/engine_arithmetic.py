"""Emulation of the engine's LoRA arithmetic, compared with the product that was measured.

The engine computes B·(A·x) in the serving dtype: A·x is rounded to that dtype before the product with B (in vLLM's kernels
for processors and in Triton's), sums are float32, and the processor's bfloat16 unit reads subnormal numbers as zero and
writes none. Screening measures B·A in float64. For balanced factors the two agree to √3 unit roundoffs for every x
(balance.py). This module tests the agreement on any factors, so that every update that gets a verdict was compared with
the engine's arithmetic.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.domain.lora import LoraModule
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

SEED: Final = 20_261_129
"""Seed of the random inputs: small whole numbers, the same on any machine and exact in every dtype."""


def objection(module: LoraModule, update: Update, directions: Tensor | None) -> str | None:
    """Return the reason why the engine would not compute `update` = b·a as it was measured; None if it would.

    directions: inputs (d_in, k) that alignment acts on, None if there are none.
    """
    if update.zero:
        return None
    lengths = module.b.double().norm(dim=0) * module.a.double().norm(dim=1)  # ‖bᵢ‖·‖aᵢ‖ (r,)
    roundoff = max(torch.finfo(module.a.dtype).eps / 2.0, COARSEST)
    if update.cancelled or not roundoff * float(lengths.sum()) <= CANCELLING * module.rank**0.5 * update.norm:
        return "its factors cancel"
    x = _inputs(module, update, directions)
    a, b = module.a.double(), module.b.double()
    exact = b @ (a @ x)
    served = _as_engine_reads(module.b) @ _as_engine_reads((_as_engine_reads(module.a) @ x).to(module.a.dtype))
    usual = update.norm * x.norm(dim=0) / x.shape[0] ** 0.5
    within = (served - exact).norm(dim=0) <= TOLERANCE * torch.maximum(exact.norm(dim=0), usual)
    if not bool(within.all()) or not bool(torch.isfinite(served.to(module.a.dtype)).all()):
        return "the engine's rounding changes what it does"
    return None


def _inputs(module: LoraModule, update: Update, directions: Tensor | None) -> Tensor:
    """Return inputs in the serving dtype with entries of about 1: (d_in, m), as float64."""
    d_in = module.a.shape[1]
    drawn = np.random.default_rng(SEED).integers(-128, 128, (d_in, RANDOM_INPUTS)) / 64.0
    aligned = [update.w] if directions is None else [update.w, directions.double()]
    columns = [torch.from_numpy(drawn), *(one[:, :ALIGNED_INPUTS] * d_in**0.5 for one in aligned)]
    return _as_engine_reads(torch.cat(columns, 1).to(module.a.dtype))


def _as_engine_reads(x: Tensor) -> Tensor:
    """Return x as the engine reads it, in float64: subnormal numbers are zero."""
    return x.masked_fill(x.abs() < torch.finfo(x.dtype).tiny, 0.0).double()
