"""ΔW = B·A as its thin singular value decomposition: the only form in which an update is measured.

ΔW has many factorisations (B·M)·(M⁻¹·A), with scale moved between A and B or rows of zeros added; its singular values and
vectors are the same in all of them, so a score computed from those cannot be evaded by the choice of factors.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

RESOLUTION: Final = 1e-13
"""Share of ‖B‖₂·‖A‖₂ below which a singular value of B·A is float64 rounding error of the two (r·2⁻⁵³, with a margin)."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """ΔW = U·diag(s)·Wᵀ in float64, without singular values at rounding level.

    u: (d_out, n), w: (d_in, n), orthonormal columns; s: (n,), descending; n ≤ rank. n = 0 if ΔW is zero or, if
    `cancelled`, if B and A cancel so far that float64 cannot resolve the remainder.
    """

    u: Tensor
    s: Tensor
    w: Tensor
    cancelled: bool

    @property
    def norm(self) -> float:
        """‖ΔW‖_F."""
        return float(self.s.norm())

    @property
    def zero(self) -> bool:
        """True if ΔW is exactly zero."""
        return len(self.s) == 0 and not self.cancelled


def thin_svd(b: Tensor, a: Tensor) -> Update | None:
    """Decompose b (d_out, r) times a (r, d_in), any float dtype; None if a value is not finite.

    QR of both factors, then the SVD of the r × r core R_B·R_Aᵀ: no Gram matrix, so errors are 2⁻⁵³·‖B‖·‖A‖, not its square
    root.
    """
    b, a = b.double(), a.double()
    if not (_finite(a) and _finite(b)):
        return None
    qb, rb = torch.linalg.qr(b)  # (d_out, p), (p, r) with p = min(d_out, r)
    qa, ra = torch.linalg.qr(a.T)  # (d_in, q), (q, r)
    u, s, wt = torch.linalg.svd(rb @ ra.T, full_matrices=False)  # core (p, q)
    size = float(torch.linalg.matrix_norm(rb, 2)) * float(torch.linalg.matrix_norm(ra, 2))
    n = int((s > RESOLUTION * size).sum())
    return Update(qb @ u[:, :n], s[:n], qa @ wt[:n].T, cancelled=n == 0 and size > 0.0)


def _finite(x: Tensor) -> bool:
    """Return whether every value is finite. NaN and infinity persist in a sum, ten times faster than testing each value."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())
