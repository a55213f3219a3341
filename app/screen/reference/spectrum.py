"""Singular values of V as kept in a reference: the top triples, λ_max, and the null of `projection`.

`projection` measures ΔW against M = (C' − I)², C' = V·Vᵀ/s₁². Its null needs only the eigenvalues m_j = (1 − s_j²/s₁²)² of
M, d_out of them. They are stored as a Gauss quadrature with few nodes, which has the same moments up to 2·nodes − 1, so
the null's cumulants up to that order are exact.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.screen.matmul import gram, left, right

EXACT_SVD: Final = 1024
"""Largest smaller side for which V is decomposed completely in float64: under half a second."""

OVERSAMPLING: Final = 16
"""Extra columns of the random start block (Halko, Martinsson, Tropp 2011, section 4.2: 5 to 10; these are cheap)."""

KRYLOV_WIDTH: Final = 16
"""A Krylov space is built for up to one in so many of V's singular triples; for more, V's whole Gram matrix is decomposed,
which then takes less time."""

SPARE: Final = 2
"""Triples computed beyond those that the energy needs, in case rounding leaves their sum just below it."""

KRYLOV_STEPS: Final = 12
"""Largest number of blocks of the Krylov space: (k + 16)·12 columns, tens of MiB at d = 14336."""

KRYLOV_ERROR: Final = 1e-6
"""Share of s₁: iteration stops if no triple's residual exceeds it."""

SEED: Final = 20_250_618
"""Seed of the random start block; fixed, so that the same checkpoints give the same reference."""

NODES: Final = 12
"""Gauss nodes kept for the null of `projection`: its first 23 cumulants are exact."""

RANK_FLOOR: Final = 1e-7
"""Singular values below this share of s₁ are rounding, not directions."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Number of singular triples to keep of a module.

    energy: as many as hold this share (0..1) of ‖V‖²; 1: always top_k. top_k: at most that many. outputs: number of left
    vectors kept; as many triples are kept even if fewer hold the energy.
    """

    energy: float
    top_k: int
    outputs: int

    def triples(self, shares: Sequence[float]) -> int:
        """Return the number of triples to keep. shares: `shares_of` all singular values."""
        return min(self.top_k, max(needed(shares, self.energy), self.outputs), len(shares))


@dataclass(frozen=True, slots=True, eq=False)
class Triples:
    """V ≈ Σ_j s_j·u_j·r_jᵀ, best first. u: (d_out, k'), s: (k,), r: (d_in, k), k' ≤ k, float32, orthonormal columns."""

    u: Tensor
    s: Tensor
    r: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Summary of V's singular values.

    s1: ‖V‖₂. c_norm: ‖C‖_F = ‖V·Vᵀ‖_F/‖V‖_F. nodes, counts: Gauss quadrature of the eigenvalues m_j of M (values in 0..1,
    counts summing to d_out). error: the largest residual ‖Vᵀu_j − s_j·r_j‖ of a triple, as a share of s₁.
    """

    triples: Triples
    error: float
    s1: float
    c_norm: float
    nodes: tuple[float, ...]
    counts: tuple[float, ...]


def shares_of(s: Tensor, norm: float) -> list[float]:
    """Return the share of norm² that the first singular values hold together, for each number of them."""
    held: list[float] = (s.double().square().cumsum(0) / norm**2).tolist()
    return held


def needed(shares: Sequence[float], energy: float) -> int:
    """Return how many singular values hold this share: one more than there are if all together hold less, or if it is 1."""
    return bisect_left(shares, energy) + 1 if energy < 1.0 else len(shares) + 1


def spectrum_of(v: Tensor, keep: Keep, norm: float) -> Spectrum:
    """Decompose V (d_out, d_in), not zero, as stored; norm: ‖V‖_F, which the kept shares are of.

    Completely up to EXACT_SVD; above it the singular values, and by a block Krylov space or from the Gram matrix as many
    triples as are kept.
    """
    if min(v.shape) <= EXACT_SVD:
        u, s, rt = torch.linalg.svd(v.double(), full_matrices=False)
        r, squares, residuals = rt.T, s * s, torch.zeros_like(s)
        s1 = float(s[0])
    else:
        squares = torch.linalg.eigvalsh(gram(v)).clamp(min=0.0)
        s1 = float(squares.max()) ** 0.5
        few = keep.triples(shares_of(squares.flip(0).sqrt(), norm))
        few = few if keep.energy == 1.0 else min(few + SPARE, len(squares))
        u, s, r, residuals = (_krylov if few <= min(v.shape) // KRYLOV_WIDTH else _by_gram)(v, few)
    s = s[: int((s > RANK_FLOOR * s1).sum())].float()
    k = keep.triples(shares_of(s, norm))
    triples = Triples(*(x.float().contiguous() for x in (u[:, : min(k, keep.outputs)], s[:k], r[:, :k])))
    nodes, counts = _projection_nodes((squares / s1**2).numpy(), v.shape[0])
    whole = float(squares.sum()) ** 0.5
    error = float(residuals[:k].max()) / s1
    return Spectrum(triples, error, s1, float((squares * squares).sum()) ** 0.5 / whole, nodes, counts)


def _by_gram(v: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top triples by the eigenvectors of V's Gram matrix on its smaller side, in float64."""
    vectors = torch.linalg.eigh(gram(v))[1][:, -top_k:].flip(1).contiguous()
    tall = v.shape[0] >= v.shape[1]  # then the Gram matrix is VᵀV
    images = right(v, vectors) if tall else left(v, vectors)
    s = images.norm(dim=0)
    others = images / s.clamp(min=torch.finfo(torch.float64).tiny)
    u, r = (others, vectors) if tall else (vectors, others)
    return u, s, r, (left(v, u) - r * s).norm(dim=0)


def _krylov(v: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top triples by Rayleigh–Ritz in a randomised block Krylov space of VᵀV (Musco, Musco, NeurIPS 2015, algorithm 2).

    The fourth tensor, here and in `_by_gram`: ‖Vᵀu_j − s_j·r_j‖ of each.
    """
    generator = torch.Generator().manual_seed(SEED)
    block = torch.randn(v.shape[1], top_k + OVERSAMPLING, generator=generator, dtype=torch.float64)
    basis = torch.empty(v.shape[1], 0, dtype=torch.float64)
    images = torch.empty(v.shape[0], 0, dtype=torch.float64)  # V·basis
    for _ in range(KRYLOV_STEPS):
        for _ in range(2):  # twice is enough (Parlett): orthogonal to the basis up to rounding
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
        image = right(v, block)
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        u, s, wt = torch.linalg.svd(images, full_matrices=False)
        u, s, r = u[:, :top_k], s[:top_k], basis @ wt[:top_k].T
        residuals = (left(v, u) - r * s).norm(dim=0)  # V·r = u·s holds by construction
        if float(residuals.max()) <= KRYLOV_ERROR * float(s[0]) or basis.shape[1] + block.shape[1] > min(v.shape):
            break
        block = left(v, image)
    return u, s, r, residuals


def _projection_nodes(c: NDArray[np.float64], d_out: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Convert eigenvalues of C' (padded with zeros to d_out) into Gauss nodes and counts of m = (1 − c)²."""
    m = (1.0 - np.clip(c, 0.0, 1.0)) ** 2
    values, counts = np.append(m, 1.0), np.append(np.ones(len(m)), float(max(0, d_out - len(m))))
    return gauss_nodes(values, counts, NODES)


def gauss_nodes(
    values: NDArray[np.float64], counts: NDArray[np.float64], nodes: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the `nodes`-point Gauss quadrature of a discrete measure: same total, same moments up to 2·nodes − 1.

    Lanczos with full re-orthogonalisation on diag(values), started from √counts (Golub, Welsch 1969).
    """
    total = float(counts.sum())
    basis = np.empty((min(nodes, len(values)), len(values)))
    q = np.sqrt(counts / total)
    diagonal: list[float] = []
    below: list[float] = []
    smallest = 1e-13 * max(float(np.max(np.abs(values))), 1e-300)
    for i in range(len(basis)):
        basis[i] = q
        w = values * q
        diagonal.append(float(q @ w))
        so_far = basis[: i + 1]
        for _ in range(2):
            w -= so_far.T @ (so_far @ w)
        size = float(np.linalg.norm(w))
        if size <= smallest:
            break
        below.append(size)
        q = w / size
    n = len(diagonal)
    jacobi = np.diag(diagonal) + np.diag(below[: n - 1], 1) + np.diag(below[: n - 1], -1)
    points, vectors = np.linalg.eigh(jacobi)
    weights = vectors[0] ** 2 * total
    return tuple(float(x) for x in points), tuple(float(x) for x in weights)
