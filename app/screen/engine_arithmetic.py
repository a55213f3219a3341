"""Emulation of the engine's LoRA arithmetic, held against the product that was measured.

The engine computes B·(A·x) in the serving dtype: A·x is rounded to it before B sees it (in vLLM's kernels for processors
and in Triton's), sums are float32, and the processor's bfloat16 unit reads subnormal numbers as zero and writes none.
What is measured is B·A in float64. For balanced factors the two agree to √3 unit roundoffs for every x (balance.py);
here it is tried, on any factors, so that whatever reaches a verdict was held against the engine it is for.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.domain.lora import LoraModule
from app.screen.lora_svd import Update

TOLERANCE: Final = 2.0**-4
"""Most by which the engine's answer may differ, as a share of the larger of the answer and of what a random input of that
length gets. √3·2⁻⁸ is what rounding A·x to bfloat16 may do to balanced factors; factors as training leaves them, which an
older release stored so, were seen at 0.016 (the demo's 252 modules), and have four times that. float32 has the same: an
engine may compute it in TF32's bits."""

CANCELLING: Final = 2.0**-5
"""Most that Σ‖bᵢ‖·‖aᵢ‖ times the unit roundoff may be, in terms of √r·‖ΔW‖_F: then rounding A·x changes B·A·x by no
more than √r times this of ‖ΔW‖_F·‖x‖, whatever x. Σ‖bᵢ‖·‖aᵢ‖ is at most 1.5·√r·‖ΔW‖_F for balanced factors; where it
is more than 8 of that in bfloat16, 64 in the others, factors cancel."""

COARSEST: Final = 2.0**-11
"""Unit roundoff of the coarsest arithmetic an engine uses for float32 factors: TF32's, float16's as well."""

RANDOM_INPUTS: Final = 4
ALIGNED_INPUTS: Final = 16
"""Inputs that are tried: random ones, and at most so many of ΔW's own and of V's directions each."""

SEED: Final = 20_261_129
"""Of the random inputs: small whole numbers, the same on any machine and exact in every dtype."""


def objection(module: LoraModule, update: Update, directions: Tensor | None) -> str | None:
    """Why the engine would not serve `update` = b·a as it was measured; None when it would.

    directions: inputs (d_in, k) that alignment acts on, None where there are none.
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
    served = _seen(module.b) @ _seen((_seen(module.a) @ x).to(module.a.dtype))
    usual = update.norm * x.norm(dim=0) / x.shape[0] ** 0.5
    within = (served - exact).norm(dim=0) <= TOLERANCE * torch.maximum(exact.norm(dim=0), usual)
    if not bool(within.all()) or not bool(torch.isfinite(served.to(module.a.dtype)).all()):
        return "the engine's rounding changes what it does"
    return None


def _inputs(module: LoraModule, update: Update, directions: Tensor | None) -> Tensor:
    """Inputs in the serving dtype, entries about 1: (d_in, m), as float64."""
    d_in = module.a.shape[1]
    drawn = np.random.default_rng(SEED).integers(-128, 128, (d_in, RANDOM_INPUTS)) / 64.0
    aligned = [update.w] if directions is None else [update.w, directions.double()]
    columns = [torch.from_numpy(drawn), *(one[:, :ALIGNED_INPUTS] * d_in**0.5 for one in aligned)]
    return _seen(torch.cat(columns, 1).to(module.a.dtype))


def _seen(x: Tensor) -> Tensor:
    """Values that the engine reads of x, in float64: subnormal numbers are zero."""
    return x.masked_fill(x.abs() < torch.finfo(x.dtype).tiny, 0.0).double()
