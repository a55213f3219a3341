"""Products that are the same to the bit in whatever order they are summed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.screen.exact import by_rows, gram, product, shifted


def rows(n: int, d: int, seed: int, spread: float = 0.0) -> Tensor:
    """Magnitudes below 1, over `spread` powers of ten within each row."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return by_rows(x * 10.0 ** (-spread * torch.rand(n, d, generator=g, dtype=torch.float64)))[0]


def bits(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 700), seed=st.integers(0, 999), spread=st.sampled_from([0.0, 4.0, 12.0]))
def test_gram_is_the_same_whatever_the_order_of_its_terms(n: int, d: int, seed: int, spread: float) -> None:
    x = rows(n, d, seed, spread)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(d))
    found = gram(x, 3)
    assert bits(found) == bits(gram(x[:, order].contiguous(), 3))
    assert bits(found) == bits(found.T)
    torch.testing.assert_close(found, x @ x.T, rtol=0, atol=2.0**-48 * d)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), r=st.integers(1, 64), d=st.integers(1, 300), seed=st.integers(0, 999))
def test_product_is_the_same_whatever_the_order_of_its_terms(n: int, r: int, d: int, seed: int) -> None:
    x, y = rows(n, r, seed), rows(r, d, seed + 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(r))
    found = product(x, y)
    assert bits(found) == bits(product(x[:, order].contiguous(), y[order].contiguous()))
    torch.testing.assert_close(found, x @ y, rtol=0, atol=2.0**-40 * r)


@pytest.mark.parametrize("d", [1, 2, 1 << 14, (1 << 14) + 1, 40_000])
def test_the_largest_terms_still_add_up_exactly(d: int) -> None:
    x = torch.full((1, d), 1.0 - 2.0**-53, dtype=torch.float64)
    assert float(gram(x, 3)) == pytest.approx(d, rel=2.0**-44)
    assert float(gram(torch.full((1, d), 0.5, dtype=torch.float64), 3)) == d / 4


def test_rows_are_scaled_by_powers_of_two_and_back() -> None:
    x = torch.tensor([[3.0, -1.5e-30], [0.0, 0.0], [2.0**-149, 0.0]], dtype=torch.float64)
    scaled, exponents = by_rows(x.clone())
    assert exponents.tolist() == [2, 0, -148]
    assert scaled[:, 0].tolist() == [0.75, 0.0, 0.5]
    assert torch.equal(shifted(scaled, exponents), x)
