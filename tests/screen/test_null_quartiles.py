import numpy as np
import pytest

from app.screen.null_quartiles import QUARTILES, inner_quartile, projection_quartiles, share_quartiles
from app.screen.quadratic_form import Array
from app.screen.reference.spectrum import NODES, gauss_nodes

N = 400_000
ERROR = 6.0 / N**0.5
"""Over four standard errors of a quartile of a sample of N, as a share of the IQR."""


def decaying(rank: int, by: float) -> Array:
    s = by ** np.arange(rank)
    share: Array = s**2 / (s**2).sum()
    return share


def agrees(quartiles: Array, sample: Array) -> None:
    low, middle, high = np.quantile(sample, QUARTILES)
    assert np.abs(quartiles - [low, middle, high]).max() < ERROR * (high - low)


@pytest.mark.parametrize(("rank", "by"), [(1, 1.0), (4, 0.5), (16, 0.8)])
@pytest.mark.parametrize(("k", "d"), [(1, 16), (4, 64), (4, 4096)])
def test_share(rank: int, by: float, k: int, d: int) -> None:
    share, rng = decaying(rank, by), np.random.default_rng(0)
    near, far = (rng.chisquare(dof, (N, rank)) @ share for dof in (k, d - k))
    agrees(share_quartiles(share, k, d), near / (near + far))


@pytest.mark.parametrize(("rank", "by"), [(1, 1.0), (4, 0.5), (12, 0.8)])
@pytest.mark.parametrize("decay", [0.5, 2.0])
def test_projection(rank: int, by: float, decay: float) -> None:
    share, rng, d = decaying(rank, by), np.random.default_rng(0), 12
    m: Array = np.square(1.0 - (1.0 + np.arange(d)) ** -decay)
    squares = rng.chisquare(1.0, (N // 4, rank, d))
    ratio = np.einsum("i,nij,j->n", share, squares, m) / np.einsum("i,nij->n", share, squares)
    low, middle, high = np.quantile(ratio, QUARTILES)
    found = projection_quartiles(share, *gauss_nodes(m, np.ones(d), NODES))
    assert np.abs(found - [low, middle, high]).max() < 2 * ERROR * (high - low)


@pytest.mark.parametrize(("rank", "by"), [(1, 1.0), (4, 0.5), (16, 0.8)])
@pytest.mark.parametrize("d_out", [8, 128, 4096])
def test_inner(rank: int, by: float, d_out: int) -> None:
    share, rng = decaying(rank, by), np.random.default_rng(0)
    reach = rng.uniform(0.1, 3.0, rank)
    z, rest = rng.standard_normal((N, rank)), rng.chisquare(d_out - 1, (N, rank))
    rho = np.abs((z * np.sqrt(share)) @ reach / np.sqrt((z**2 + rest) @ share))
    found, median = inner_quartile(share, reach, d_out), float(np.median(rho))
    assert found == pytest.approx(median, rel=2 * ERROR)


@pytest.mark.parametrize("decay", ["flat", "power", "exponential"])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_quadratures_stand_for_whole_spectra(decay: str, rank: int) -> None:
    """The stated error: quartiles within 1e-6 of the IQR of those of the whole spectrum."""
    d = 96
    c = {"flat": np.linspace(0, 1, d), "power": (1.0 + np.arange(d)) ** -2, "exponential": 0.8 ** np.arange(d)}[decay]
    m, share = (1.0 - c / c.max()) ** 2, decaying(rank, 0.8)
    whole = projection_quartiles(share, tuple(m), (1.0,) * d)
    found = projection_quartiles(share, *gauss_nodes(m, np.ones(d), NODES))
    assert np.abs(found - whole).max() < 1e-6 * (whole[2] - whole[0])


@pytest.mark.parametrize("by", [0.3, 0.8, 0.97])
@pytest.mark.parametrize("rank", [9, 16, 64])
def test_many_singular_values_are_stood_for_by_few(monkeypatch: pytest.MonkeyPatch, by: float, rank: int) -> None:
    share, m = decaying(rank, by), np.array([0.0, 0.3, 0.9, 1.0])
    counts = (1.0, 3.0, 20.0, 40.0)
    few = share_quartiles(share, 4, 64), projection_quartiles(share, tuple(m), counts)
    monkeypatch.setattr("app.screen.null_quartiles.COMPRESS", 64)
    monkeypatch.setattr("app.screen.null_quartiles.COMPRESS_PROJECTION", 64)
    all_of_them = share_quartiles(share, 4, 64), projection_quartiles(share, tuple(m), counts)
    for found, whole in zip(few, all_of_them, strict=True):
        assert np.abs(found - whole).max() < 1e-6 * (whole[2] - whole[0])


def test_equal_singular_values_need_one_node() -> None:
    np.testing.assert_allclose(
        share_quartiles(np.full(32, 1 / 32), 2, 64), share_quartiles(np.ones(1), 64, 64 * 32), rtol=1e-8
    )
