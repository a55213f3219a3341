"""E-DIEM = (d − median(P)) / IQR(P): three distances of an update from an alignment vector, each against its null.

Notation: ΔW = U·diag(s)·Wᵀ (lora_svd.py), n = ‖ΔW‖_F, V (d_out × d_in) with v = ‖V‖_F and s₁ = ‖V‖₂, C' = V·Vᵀ/s₁².

The null P is ours (DIEM, arXiv 2407.08623, compares with random vectors and does not specify which). A random update has
ΔW's shape, rank and norm and, in expectation, one of its two Gram matrices:

- `projection`, `alignment`: ΔW' = n·Y/‖Y‖_F with rows of Y i.i.d. N(0, ΔWᵀ·ΔW). This is B with i.i.d. Gaussian rows, on
  the A of the gauge BᵀB = I. The inputs that the update reads are kept; the outputs that it writes are randomised.
- `input`: columns of Y i.i.d. N(0, ΔW·ΔWᵀ). The outputs are kept; the inputs are randomised.

Both depend on ΔW alone, not on its factors, and scale with it. Every d is a monotone function of a ratio of quadratic
forms in Gaussians. null_quartiles.py computes the quartiles of that ratio without sampling; the median and quartiles of d
follow through the function.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from app.screen.lora_svd import Update
from app.screen.matmul import left, right
from app.screen.null_quartiles import inner_quartile, projection_quartiles, share_quartiles
from app.screen.quadratic_form import Array
from app.screen.reference.manifest import ModuleInfo

IQR_FLOOR: Final = 1e-9
"""Smallest share of the median that an IQR must have: below it, it is rounding error and there is no score (method.md)."""

REACH_FLOOR: Final = 1e-6
"""‖V·w_i‖ below this share of ‖V‖_F is float32 rounding: no `alignment` score. For a random w_i it is about 1/√d_in."""


@dataclass(frozen=True, slots=True)
class Null:
    """Median and IQR of a distance under its null, in the distance's own unit."""

    median: float
    iqr: float


@dataclass(frozen=True, slots=True)
class Scored:
    """Result of one comparison: the distance, its null, and the distance's excess over the median.

    excess: d − median, computed without cancellation. null: None if there is none.
    """

    distance: float
    excess: float
    null: Null | None

    @property
    def score(self) -> float | None:
        """E-DIEM in float64, or None if the null is degenerate."""
        if self.null is None or not self.null.iqr > IQR_FLOOR * self.null.median:
            return None
        return self.excess / self.null.iqr


@dataclass(frozen=True, slots=True)
class AgainstV:
    """Results of the comparisons that need V. cosine: Safe LoRA's cos(C·ΔW, ΔW); None if V·Vᵀ·ΔW is zero."""

    alignment: Scored
    projection: Scored
    cosine: float | None


def against_inputs(update: Update, on_r: Tensor) -> Scored:
    """Compute `input`: d = ‖ΔW·R_k‖_F, R_k (d_in, k) with orthonormal columns (ours). on_r: Wᵀ·R_k (n, k).

    d²/n² = Σ s_i²·‖R_kᵀw_i‖²/Σ s_i². There is no null if k = 0 or R_k spans every input.
    """
    d_in, k = update.a.shape[1], on_r.shape[1]
    share = _shares(update)
    ratio = float(share @ on_r.square().sum(1).numpy())
    if not 0 < k < d_in:
        return Scored(update.norm * ratio**0.5, 0.0, None)
    return _of_ratio(update.norm, ratio, share_quartiles(share, k, d_in))


def against_v(update: Update, v: Tensor, info: ModuleInfo) -> AgainstV:
    """Compute `alignment`, `projection` and Safe LoRA's cosine. Reads V three times; forms no dense product with ΔW."""
    u, w = (side.float().to(v.device) for side in (update.u, update.w))
    t, h = left(v, u), right(v, w)  # Vᵀ·U (d_in, n) and V·W (d_out, n)
    scale = _power_of_two(t)
    again = right(v, (t / scale).float()).double() * scale  # V·Vᵀ·U (d_out, n)
    return _against_v(update, info, t.cpu(), h.double().cpu(), again.cpu())


def _power_of_two(t: Tensor) -> float:
    """Return a scale that keeps V·t inside float32 if V is tiny or huge; a power of two causes no rounding."""
    return 2.0 ** math.frexp(float(t.abs().max()))[1]


def _against_v(update: Update, info: ModuleInfo, t: Tensor, h: Tensor, again: Tensor) -> AgainstV:
    """Compute the result for one update. t: Vᵀ·U (d_in, n); h: V·W, again: V·Vᵀ·U (d_out, n); float64."""
    squares = update.s.square()
    inner = float(squares @ t.square().sum(0))  # ⟨V·Vᵀ·ΔW, ΔW⟩: W is orthonormal
    image = float(squares @ again.square().sum(0))  # ‖V·Vᵀ·ΔW‖²
    along = float(update.s @ (update.u * h).sum(0))  # ⟨ΔW, V⟩
    return AgainstV(
        alignment=_alignment(update, h.norm(dim=0).numpy(), along, info),
        projection=_projection(update, inner, image, info),
        cosine=inner / (image**0.5 * update.norm) if image > 0.0 else None,
    )


def _alignment(update: Update, reach: Array, along: float, info: ModuleInfo) -> Scored:
    """Compute d = ‖ΔW − V‖_F, d² = n² + v² − 2·⟨ΔW, V⟩; reach_i = ‖V·w_i‖.

    Under the null ⟨ΔW', V⟩ = n·ρ with ρ symmetric about 0: the median of d is exactly (n² + v²)^½, its quartiles at ±ρ_¾.
    """
    n, v = update.norm, info.v_norm
    middle = (n * n + v * v) ** 0.5
    distance = max(n * n + v * v - 2.0 * along, 0.0) ** 0.5
    excess = -2.0 * along / (distance + middle)
    if not reach.max() > REACH_FLOOR * v:
        return Scored(distance, excess, None)
    rho = inner_quartile(_shares(update), reach, info.d_out)
    low, high = (max(n * n + v * v - 2.0 * n * x, 0.0) ** 0.5 for x in (rho, -rho))
    return Scored(distance, excess, Null(middle, 4.0 * n * rho / (low + high)))


def _projection(update: Update, inner: float, image: float, info: ModuleInfo) -> Scored:
    """Compute d = ‖C'·ΔW − ΔW‖_F: the pair of the released SPLoRA code, with C' in place of C.

    d²/n² = 1 + ‖C'ΔW‖²/n² − 2·⟨C'ΔW, ΔW⟩/n². There is no null if (C' − I)² is a multiple of I.
    """
    ratio = max(1.0 + (image / info.s1**2 - 2.0 * inner) / (info.s1 * update.norm) ** 2, 0.0)
    if not max(info.nodes) - min(info.nodes) > IQR_FLOOR:
        return Scored(update.norm * ratio**0.5, 0.0, None)
    return _of_ratio(update.norm, ratio, projection_quartiles(_shares(update), info.nodes, info.counts))


def _shares(update: Update) -> Array:
    """Return s_i²/Σ s²: (n,)."""
    squares: Array = update.s.square().numpy()
    share: Array = squares / squares.sum()
    return share


def _of_ratio(norm: float, ratio: float, t: Array) -> Scored:
    """Convert a ratio and its quartiles into distances: n times the square root."""
    low, middle, high = (float(x) ** 0.5 for x in t)
    distance = ratio**0.5
    return Scored(norm * distance, norm * (distance - middle), Null(norm * middle, norm * (high - low)))


def input_share(update: Update, scored: Scored) -> float:
    """Return the share of ‖ΔW‖² that lies on R_k, 0..1."""
    return min((scored.distance / update.norm) ** 2, 1.0)


def removed_share(update: Update, on_r: Tensor, on_u: Tensor) -> float:
    """Return the share of ‖ΔW‖² that projecting removes, 0..1: 1 − ‖(I − U_k·U_kᵀ)·ΔW·(I − R_k·R_kᵀ)‖²/‖ΔW‖².

    on_r: Wᵀ·R_k (n, k), on_u: Uᵀ·U_k (n, k'). With P and Q the two projectors,
    ‖P·U·diag(s)·(Q·W)ᵀ‖² = sᵀ·(G_u ∘ G_w)·s, G_u = I − on_u·on_uᵀ and G_w = I − on_r·on_rᵀ.
    """
    eye = torch.eye(len(update.s), dtype=torch.float64)
    left = update.s @ ((eye - on_u @ on_u.T) * (eye - on_r @ on_r.T)) @ update.s
    return min(max(1.0 - float(left) / update.norm**2, 0.0), 1.0)
