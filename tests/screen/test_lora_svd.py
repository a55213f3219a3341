import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.lora import LoraModule
from app.screen import lora_svd
from app.screen.balance import balance
from app.screen.lora_svd import Update, thin_svd
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


def by_qr(b: Tensor, a: Tensor) -> Update:
    """The oracle: QR decompositions of both factors, whatever they are."""
    return lora_svd._by_qr(b.double(), a.double())


def check_equal(one: Update, other: Update, size: float) -> None:
    """Assert that both have one spectrum and one update on either side, to float64's rounding of ‖B‖·‖A‖."""
    assert len(one.s) == len(other.s)
    torch.testing.assert_close(one.s, other.s, rtol=0, atol=1e-13 * size)
    g = torch.Generator().manual_seed(7)
    r, u = (torch.randn(d, 3, generator=g, dtype=torch.float64) for d in (one.a.shape[1], one.b.shape[0]))
    for mine, theirs in ((one.on_inputs(r), other.on_inputs(r)), (one.on_outputs(u), other.on_outputs(u))):
        weighted = [(x * update.s[:, None]).norm(dim=0) for x, update in ((mine, one), (theirs, other))]
        torch.testing.assert_close(*weighted, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rank", [1, 7, 64])
def test_balanced_factors_are_decomposed_from_gram_matrices_as_exactly_as_by_qr(dtype: torch.dtype, rank: int) -> None:
    b, a = factors(300, 500, rank, norm=0.3)
    module = balance(LoraModule("m", a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0))
    assert lora_svd._cholesky(module.b.double().T @ module.b.double()) is not None
    update = thin_svd(module.b, module.a)
    assert update is not None
    check_equal(update, by_qr(module.b, module.a), 0.3)
    torch.testing.assert_close(update.u.T @ update.u, torch.eye(len(update.s), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(update.w.T @ update.w, torch.eye(len(update.s), dtype=torch.float64), rtol=0, atol=1e-12)


def crafted(kind: str) -> tuple[Tensor, Tensor]:
    """Factors on which Gram matrices go wrong or nearly do."""
    b, a = factors(64, 96, 4)
    if kind == "near-parallel":
        b = b[:, :1] + 1e-9 * b
    elif kind == "rank-deficient":
        a = torch.cat([a[:3], a[:1] + a[1:2]])
    elif kind == "huge":
        b, a = b * 1e30, a * 1e-30
    elif kind == "denormal":
        b, a = (b * 1e-42).float(), (a * 1e30).float()  # subnormal in the widest dtype an upload may have
    elif kind == "a zero column":
        b = b * torch.tensor([1.0, 0.0, 1.0, 1.0])
    elif kind == "uneven":
        b, a = torch.linalg.qr(b)[0] * torch.tensor([1.0, 1e-3, 1e-6, 1e-9]), torch.linalg.qr(a.T)[0].T
    return b, a


@pytest.mark.parametrize(
    "kind", ["near-parallel", "rank-deficient", "huge", "denormal", "a zero column", "uneven", "plain"]
)
def test_crafted_factors_are_decomposed_as_exactly_as_by_qr(kind: str) -> None:
    b, a = crafted(kind)
    update = thin_svd(b, a)
    assert update is not None
    check_equal(update, by_qr(b, a), float(b.double().norm()) * float(a.double().norm()))
