import pytest
import torch

from app.domain.policy import Comparison
from app.screen import matmul as products
from app.screen.matmul import gram, left, right
from tests.screen.cases import alignment_vector, factors, module

SHAPES = [(1, 1), (7, 300), (300, 7), (65, 130), (256, 64)]


@pytest.fixture(params=[1 << 8, 1 << 14, 1 << 21])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """From eight rows a block, with many folds and a ragged end, to everything in one."""
    monkeypatch.setattr(products, "BLOCK_BYTES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [1, 8, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_agree_with_dense_float64(shape: tuple[int, int], columns: int, dtype: torch.dtype) -> None:
    v = alignment_vector(*shape)
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(d, columns, generator=g, dtype=dtype) for d in (shape[1], shape[0]))
    wide = v.double()
    atol = 1e-12 if dtype is torch.float64 else 1e-5
    got = right(v, x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wide @ x.double(), rtol=0, atol=atol)
    torch.testing.assert_close(left(v, y), wide.T @ y.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exact", [0, 1024])
def test_gram_is_of_the_smaller_side(shape: tuple[int, int], exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "GRAM_EXACT", exact)
    monkeypatch.setattr(products, "GRAM_ROWS", 50)
    v = alignment_vector(*shape)
    wide = v.double() if shape[0] >= shape[1] else v.double().T
    torch.testing.assert_close(gram(v), wide.T @ wide, rtol=0, atol=1e-12 if exact else 1e-6)


def test_the_size_of_blocks_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    m = module(alignment_vector(500, 130))
    b, a = factors(500, 130, 5)
    whole = {c: m.score(b, a, c) for c in Comparison}
    monkeypatch.setattr(products, "BLOCK_BYTES", 1 << 13)
    for comparison, score in whole.items():
        assert m.score(b, a, comparison) == pytest.approx(score, abs=1e-4)
