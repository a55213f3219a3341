"""Quartiles of the three nulls: the distributions of a random update's ratios.

A random update has i.i.d. Gaussian rows (columns, for `input`) with ΔW's own Gram matrix and is scaled to ‖ΔW‖_F
(distances.py gives the reason). z and χ² below are independent standard normals and chi-squares, s_i the singular values
of ΔW. Exact to 1e-7 of the IQR: `alignment`, and `input` up to COMPRESS singular values. Approximated, by less than 1e-6
of the IQR: `input` above that and `projection`, for which a spectrum is replaced by its Gauss quadrature, which preserves
the first 2·nodes − 1 cumulants of the form (tested against the whole spectrum).
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from app.screen.quadratic_form import Array, quantiles
from app.screen.reference.spectrum import gauss_nodes

COMPRESS: Final = 8
"""Largest number of singular values of ΔW used as they are; more are replaced by a quadrature of as many nodes."""

COMPRESS_PROJECTION: Final = 6
"""The same for `projection`, whose form has one term for each pair of nodes."""

QUARTILES: Final = np.array([0.25, 0.5, 0.75])


def share_quartiles(share: Array, k: int, d: int) -> Array:
    """Return the quartiles of `input`: ‖ΔW'·R_k‖²/‖ΔW'‖² = Σ s_i²·χ²_k/(Σ s_i²·χ²_k + Σ s_i²·χ²_{d − k}).

    share: s_i²/Σ s². Returns (3,).
    """
    values, counts = _compressed(share, COMPRESS)
    dof = np.concatenate([counts * k, counts * (d - k)])

    def weights(t: Array) -> tuple[Array, Array]:  # Σ s²·(1 − t)·χ²_k − Σ s²·t·χ²_{d − k} ≤ 0
        w = np.concatenate([values * (1.0 - t[:, None]), -values * t[:, None]], axis=1)
        return w, np.broadcast_to(-np.concatenate([values, values]), w.shape)

    return quantiles(weights, dof, QUARTILES, k / d, (0.0, 1.0))


def projection_quartiles(share: Array, nodes: Sequence[float], counts: Sequence[float]) -> Array:
    """Return the quartiles of `projection`: ‖(C' − I)·ΔW'‖²/‖ΔW'‖² = Σ_ij s_i²·m_j·z_ij²/Σ_ij s_i²·z_ij².

    m_j: eigenvalues of (C' − I)². nodes, counts: quadrature of the m_j. Returns (3,).
    """
    values, times = _compressed(share, COMPRESS_PROJECTION)
    m, many = np.array(nodes), np.array(counts)
    dof = np.outer(times, many).ravel()

    def weights(t: Array) -> tuple[Array, Array]:  # Σ s_i²·(m_j − t)·χ² ≤ 0
        w = (values[:, None] * (m[None, :] - t[:, None, None])).reshape(len(t), -1)
        return w, np.broadcast_to(-np.repeat(values, len(m)), w.shape)

    mean = float(m @ many) / float(many.sum())
    return quantiles(weights, dof, QUARTILES, mean, (float(m.min()), float(m.max())))


def inner_quartile(share: Array, reach: Array, d_out: int) -> float:
    """Return the upper quartile of `alignment`: of ρ = ⟨ΔW', V⟩/‖ΔW'‖, with reach_i = ‖V·w_i‖, not all zero.

    ρ = Σ s_i·reach_i·z_i/(Σ s_i²·(z_i² + χ²_{d_out − 1}))^½ is symmetric about 0, so ρ_¾ = τ^½ with τ the median of ρ².
    With α_i = s_i·reach_i: ρ² ≤ τ ⇔ zᵀ(ααᵀ − τ·diag(s²))z − τ·Σ s_i²·χ²_{d_out − 1} ≤ 0, a small eigenvalue problem for
    each τ.
    """
    farthest = float(reach.max())
    if d_out == 1:  # one row has one direction: ρ is ±‖V·w‖, nothing to integrate
        return farthest
    alpha: Array = np.sqrt(share) * (reach / farthest)
    dof = np.concatenate([np.ones(len(share)), np.full(len(share), d_out - 1.0)])

    def weights(tau: Array) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(np.outer(alpha, alpha) - tau[0] * np.diag(share))
        slopes = -share @ vectors**2
        return np.concatenate([values, -tau[0] * share])[None, :], np.concatenate([slopes, -share])[None, :]

    most = float(reach @ reach) / farthest**2  # the largest possible ρ²
    tau = quantiles(weights, dof, np.array([0.5]), float(alpha @ alpha) / d_out, (0.0, most))
    return farthest * math.sqrt(float(tau[0]))


def _compressed(share: Array, most: int) -> tuple[Array, Array]:
    """Return values and counts of the squared singular values, at most `most` of them."""
    if len(share) <= most:
        return share, np.ones(len(share))
    values, counts = gauss_nodes(share, np.ones(len(share)), most)
    return np.array(values), np.array(counts)
