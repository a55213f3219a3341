"""ΔW = B·A as its thin singular value decomposition: the only form in which an update is measured.

ΔW has many factorisations (B·M)·(M⁻¹·A), with scale moved between A and B or rows of zeros added; its singular values and
vectors are the same in all of them, so a score computed from those cannot be evaded by the choice of factors.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from app.screen.balance import NEAR_ORTHOGONAL

RESOLUTION: Final = 1e-13
"""Share of ‖B‖·‖A‖ below which a singular value of B·A is float64 rounding error of the two (r·2⁻⁵³, with a margin)."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """ΔW = U·diag(s)·Wᵀ in float64, without singular values at rounding level.

    U = b·p (d_out, n) and W = aᵀ·q (d_in, n) have orthonormal columns and are stored as these products: b (d_out, r), a
    (r, d_in), p and q (r, n). s: (n,), descending; n ≤ rank. n = 0 if ΔW is zero or, if `cancelled`, if B and A cancel so
    far that float64 cannot resolve the remainder.
    """

    b: Tensor
    a: Tensor
    p: Tensor
    q: Tensor
    s: Tensor
    cancelled: bool

    @property
    def u(self) -> Tensor:
        """U: (d_out, n)."""
        return self.b @ self.p

    @property
    def w(self) -> Tensor:
        """W: (d_in, n)."""
        return self.a.T @ self.q

    def on_inputs(self, r: Tensor) -> Tensor:
        """Return Wᵀ·r (n, k), r (d_in, k)."""
        return self.q.T @ (self.a @ r.double())

    def on_outputs(self, u: Tensor) -> Tensor:
        """Return Uᵀ·u (n, k), u (d_out, k)."""
        return self.p.T @ (self.b.T @ u.double())

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

    Errors are a few 2⁻⁵³·‖B‖·‖A‖, not its square root: Gram matrices are used for nearly orthogonal factors only, and a QR
    decomposition of both for all others.
    """
    b, a = b.double(), a.double()
    rb, ra = _cholesky(b.T @ b), _cholesky(a @ a.T)
    if rb is not None and ra is not None:
        return _from_roots(b, a, rb, ra)
    return _by_qr(b, a) if _finite(a) and _finite(b) else None


def _cholesky(gram: Tensor) -> Tensor | None:
    """Return the upper triangular R (r, r) with Rᵀ·R = gram; None unless the columns are nearly orthogonal, none zero.

    With NEAR_ORTHOGONAL and Gershgorin's theorem, the Gram matrix of the normalised columns has eigenvalues between ½ and
    3/2: its Cholesky factor is as exact as a QR decomposition's, up to a factor of 3. Balanced factors qualify.
    """
    lengths = gram.diagonal().sqrt()
    cosines = gram / lengths / lengths[:, None]
    if not bool((cosines.abs().sum(0) - 1.0 <= NEAR_ORTHOGONAL).all()):  # false for NaN, too
        return None
    root: Tensor = torch.linalg.cholesky(cosines, upper=True) * lengths
    return root


def _from_roots(b: Tensor, a: Tensor, rb: Tensor, ra: Tensor) -> Update:
    left, s, right = torch.linalg.svd(rb @ ra.T)
    n = int((s > RESOLUTION * rb.norm() * ra.norm()).sum())
    p = torch.linalg.solve_triangular(rb, left[:, :n], upper=True)
    q = torch.linalg.solve_triangular(ra, right[:n].T, upper=True)
    return Update(b, a, p, q, s[:n], cancelled=n == 0)


def _by_qr(b: Tensor, a: Tensor) -> Update:
    qb, rb = torch.linalg.qr(b)  # (d_out, p), (p, r) with p = min(d_out, r)
    qa, ra = torch.linalg.qr(a.T)  # (d_in, q), (q, r)
    u, s, wt = torch.linalg.svd(rb @ ra.T, full_matrices=False)  # core (p, q)
    size = float(torch.linalg.matrix_norm(rb, 2)) * float(torch.linalg.matrix_norm(ra, 2))
    n = int((s > RESOLUTION * size).sum())
    return Update(qb, qa.T, u[:, :n], wt[:n].T, s[:n], cancelled=n == 0 and size > 0.0)


def _finite(x: Tensor) -> bool:
    """Return whether every value is finite. NaN and infinity persist in a sum, ten times faster than testing each value."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())
