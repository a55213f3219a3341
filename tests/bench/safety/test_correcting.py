"""Corrections in low-rank form against the same thing written out densely."""

import pytest
import torch

from app.bench.safety.adapter_under_test import Low, Side
from app.bench.safety.projection_variants import oppose, project, two_sided


def parts(seed: int, d_out: int = 24, d_in: int = 16, rank: int = 4) -> tuple[Low, Side, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(d_out, d_in, generator=g)
    u, s, rt = torch.linalg.svd(v, full_matrices=False)
    low = Low(torch.randn(d_out, rank, generator=g), torch.randn(rank, d_in, generator=g))
    return low, Side(u, s, rt.T), v


@pytest.mark.parametrize("k", [1, 3, 16])
def test_projected_updates_do_nothing_on_the_projected_inputs_and_the_same_elsewhere(k: int) -> None:
    low, side, _ = parts(k)
    r = side.r[:, :k]
    left = project(low, r)
    assert torch.allclose(left.dense @ r, torch.zeros(24, k), atol=1e-4)
    elsewhere = torch.eye(16) - r @ r.T
    assert torch.allclose(left.dense @ elsewhere, low.dense @ elsewhere, atol=1e-4)
    assert torch.allclose(project(left, r).dense, left.dense, atol=1e-4)


def test_both_sides_take_out_only_what_joins_them() -> None:
    low, side, _ = parts(7)
    u, r = side.u[:, :3], side.r[:, :3]
    expected = low.dense - u @ u.T @ low.dense @ r @ r.T
    assert torch.allclose(two_sided(low, side, 3).dense, expected, atol=1e-4)


def test_what_opposes_v_goes_and_what_agrees_stays() -> None:
    _, side, v = parts(9)
    against, along = Low(-v, torch.eye(16)), Low(v, torch.eye(16))
    assert torch.allclose(oppose(against, side, 16).dense, torch.zeros(24, 16), atol=1e-3)
    assert torch.allclose(oppose(along, side, 16).dense, v, atol=1e-4)
