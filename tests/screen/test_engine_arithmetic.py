"""The emulation that every measured update is held against."""

import pytest
import torch
from torch import Tensor

from app.domain.lora import LoraModule
from app.screen.balance import balance
from app.screen.engine_arithmetic import objection
from app.screen.lora_svd import thin_svd

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def module(b: Tensor, a: Tensor, dtype: torch.dtype) -> LoraModule:
    return LoraModule("m", a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0)


def why(m: LoraModule, directions: Tensor | None = None) -> str | None:
    update = thin_svd(m.b, m.a)
    assert update is not None
    return objection(m, update, directions)


def factors(rank: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, rank, generator=g) * 0.05, torch.randn(rank, 48, generator=g) / 7.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_and_balanced_and_zero_factors_pass(dtype: torch.dtype) -> None:
    b, a = factors()
    directions = torch.linalg.qr(torch.randn(48, 5, generator=torch.Generator().manual_seed(1)))[0]
    for m in (module(b, a, dtype), balance(module(b, a, dtype)), module(b * 0, a, dtype)):
        assert why(m) is None
        assert why(m, directions) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_alignment_no_longer_sees_passes(dtype: torch.dtype) -> None:
    """After projecting, a direction of V gets rounding alone: nothing to be held to."""
    b, a = factors()
    directions = torch.linalg.qr(torch.randn(48, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert why(balance(module(b, a - (a @ directions) @ directions.T, dtype)), directions) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_that_cancel(dtype: torch.dtype) -> None:
    b, a = factors()
    large = 2.0**10 if dtype is not torch.float16 else 2.0**8
    assert why(module(torch.cat([b, large * b, -large * b], 1), torch.cat([a, a, a]), dtype)) == "its factors cancel"
    assert why(module(torch.cat([b, -b], 1), torch.cat([a, a]), dtype)) == "its factors cancel"


def test_subnormal_factors_in_bfloat16() -> None:
    b, a = factors()
    assert why(module(b * 2.0**100, a * 2.0**-130, torch.bfloat16)) == "the engine's rounding changes what it does"
    assert why(module(b * 2.0**-125, a * 2.0**100, torch.bfloat16)) == "the engine's rounding changes what it does"


def test_products_beyond_float16() -> None:
    b, a = factors()
    assert why(module(b * 2.0**-12, a * 2.0**16, torch.float16)) == "the engine's rounding changes what it does"
    assert why(module(b * 2.0**10, a * 2.0**10, torch.float16)) == "the engine's rounding changes what it does"
