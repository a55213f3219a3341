"""The baselines have the properties method.md states of the published algorithms."""

import pytest
import torch
from torch import Tensor

from app.bench.screening.baselines import alignment_matrix, released_score, safe_lora_cosine
from tests.screen.oracle import Dense


def drawn(d_out: int, d_in: int, rank: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    v, b, a = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((d_out, d_in), (d_out, rank), (rank, d_in))
    )
    return v, scale * b, a


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_distance_drops_out(scale: float, seed: int) -> None:
    """The score is 1 − (Q1(C·B·A) − Q1(B·A))."""
    v, b, a = drawn(60, 40, 4, scale, seed)
    c = alignment_matrix(v)
    quarter = torch.quantile(c @ b @ a, 0.25) - torch.quantile(b @ a, 0.25)
    assert released_score(c, b, a) == pytest.approx(1.0 - float(quarter), abs=1e-6)


def test_a_permutation_of_columns_changes_nothing() -> None:
    """In exact arithmetic; in float32 the released code keeps 4.3 of the 10 lowest modules (method.md)."""
    v, b, a = drawn(60, 40, 4)
    c = alignment_matrix(v)
    delta = b @ a
    flipped = delta[:, torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    identity = torch.eye(40, dtype=torch.float64)
    assert released_score(c, flipped, identity) == pytest.approx(released_score(c, delta, identity), abs=1e-6)


def test_it_refuses_what_torch_quantile_refuses() -> None:
    c = torch.zeros(1, 1)
    with pytest.raises(RuntimeError, match="too large"):
        released_score(c, torch.ones(1, 1), torch.ones(1, (1 << 24) + 1))


def test_safe_lora_agrees_with_the_oracle() -> None:
    v, b, a = drawn(60, 40, 4)
    assert safe_lora_cosine(alignment_matrix(v), b, a) == pytest.approx(Dense(v, 4).cosine(b @ a), rel=1e-12)
