"""Singular values of V as kept in a reference: the top triples, λ_max, and the null of `projection`.

`projection` measures ΔW against M = (C' − I)², C' = V·Vᵀ/s₁². Its null needs only the eigenvalues m_j = (1 − s_j²/s₁²)² of
M, d_out of them. They are stored as a Gauss quadrature with few nodes, which has the same moments up to 2·nodes − 1, so
the null's cumulants up to that order are exact.
"""

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


@dataclass(frozen=True, slots=True, eq=False)
class Triples:
    """V ≈ Σ_j s_j·u_j·r_jᵀ, best first. u: (d_out, k), s: (k,), r: (d_in, k), float32, orthonormal columns."""

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


def spectrum_of(v: Tensor, top_k: int) -> Spectrum:
    """Decompose V (d_out, d_in), not zero, as stored: completely up to EXACT_SVD, by a block Krylov space above."""
    if min(v.shape) <= EXACT_SVD:
        u, s, rt = torch.linalg.svd(v.double(), full_matrices=False)
        r, squares, error = rt.T, s * s, 0.0
        s1 = float(s[0])
    else:
        squares = torch.linalg.eigvalsh(gram(v)).clamp(min=0.0)
        s1 = float(squares.max()) ** 0.5
        u, s, r, residual = _krylov(v, top_k)
        error = residual / s1
    k = min(top_k, int((s > RANK_FLOOR * s1).sum()))
    triples = Triples(*(x.float().contiguous() for x in (u[:, :k], s[:k], r[:, :k])))
    nodes, counts = _projection_nodes((squares / s1**2).numpy(), v.shape[0])
    norm = float(squares.sum()) ** 0.5
    return Spectrum(triples, error, s1, float((squares * squares).sum()) ** 0.5 / norm, nodes, counts)


def _krylov(v: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Top triples by Rayleigh–Ritz in a randomised block Krylov space of VᵀV (Musco, Musco, NeurIPS 2015, algorithm 2)."""
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
        residual = left(v, u) - r * s  # (d_in, k); V·r = u·s holds by construction
        error = float(residual.norm(dim=0).max())
        if error <= KRYLOV_ERROR * float(s[0]) or basis.shape[1] + block.shape[1] > min(v.shape):
            break
        block = left(v, image)
    return u, s, r, error


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
