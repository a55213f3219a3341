import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.screen.lora_svd import thin_svd
from tests.screen.cases import factors


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(24, 40, 4), (40, 24, 1), (4, 40, 4), (4, 6, 8), (8, 8, 8)])
def test_is_the_singular_value_decomposition_of_the_product(d_out: int, d_in: int, rank: int) -> None:
    b, a = factors(d_out, d_in, rank)
    update = thin_svd(b, a)
    assert update is not None
    assert len(update.s) <= rank
    torch.testing.assert_close((update.u * update.s) @ update.w.T, b @ a, rtol=0, atol=1e-14)
    eye = torch.eye(len(update.s), dtype=torch.float64)
    torch.testing.assert_close(update.u.T @ update.u, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(update.w.T @ update.w, eye, rtol=0, atol=1e-12)
    assert update.norm == pytest.approx(float((b @ a).norm()), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 6), extra=st.integers(0, 5), seed=st.integers(0, 1000), scale=st.sampled_from([1e-8, 1.0, 1e8])
)
def test_does_not_depend_on_the_factors(rank: int, extra: int, seed: int, scale: float) -> None:
    b, a = factors(24, 32, rank, seed=seed)
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(rank, rank, generator=g, dtype=torch.float64) + 3.0 * torch.eye(rank, dtype=torch.float64)
    b2 = torch.cat([scale * b @ m, torch.zeros(24, extra, dtype=torch.float64)], 1)
    a2 = torch.cat([torch.linalg.solve(m, a) / scale, torch.zeros(extra, 32, dtype=torch.float64)], 0)
    one, two = thin_svd(b, a), thin_svd(b2, a2)
    assert one is not None
    assert two is not None
    torch.testing.assert_close(one.s, two.s, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close((one.w * one.s**2) @ one.w.T, (two.w * two.s**2) @ two.w.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("zeroed", ["a", "b"])
def test_zero_is_exactly_nothing(zeroed: str) -> None:
    b, a = factors(8, 8, 2)
    update = thin_svd(b * (zeroed != "b"), a * (zeroed != "a"))
    assert update is not None
    assert update.zero
    assert update.norm == 0.0


def test_factors_that_cancel_are_not_called_zero() -> None:
    b, a = factors(8, 12, 1)
    update = thin_svd(torch.cat([b, b], 1), torch.cat([a, -a], 0))
    assert update is not None
    assert update.cancelled
    assert not update.zero


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", [0, 1])
def test_refuses_what_is_not_finite(bad: float, factor: int) -> None:
    pair = list(factors(8, 8, 2))
    pair[factor] = pair[factor].clone()
    pair[factor][1, 1] = bad
    assert thin_svd(*pair) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_16_bit_factors_are_widened_before_any_product(dtype: torch.dtype) -> None:
    b, a = (x.to(dtype) for x in factors(24, 32, 4))
    update = thin_svd(b, a)
    assert update is not None
    torch.testing.assert_close((update.u * update.s) @ update.w.T, b.double() @ a.double(), rtol=0, atol=1e-14)


def test_extreme_but_finite_values_do_not_overflow() -> None:
    b, a = factors(8, 8, 2)
    update = thin_svd((b * 1e38).float(), (a * 1e38 / a.abs().max()).float())
    assert update is not None
    assert update.norm > 1e70
