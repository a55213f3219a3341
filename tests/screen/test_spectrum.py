import numpy as np
import pytest
import torch

from app.screen.reference import spectrum
from app.screen.reference.spectrum import Keep, gauss_nodes, needed, shares_of, spectrum_of
from tests.screen.cases import alignment_vector, decomposed


def test_gauss_nodes_keep_total_and_moments() -> None:
    rng = np.random.default_rng(0)
    values, counts = rng.uniform(0.0, 1.0, 200), np.ones(200)
    nodes, weights = (np.array(x) for x in gauss_nodes(values, counts, 6))
    assert len(nodes) == 6
    assert (weights > 0).all()
    for power in range(12):  # 2·6 − 1 = 11
        assert (weights * nodes**power).sum() == pytest.approx((values**power).sum(), rel=1e-10)


def test_gauss_nodes_are_the_measure_itself_when_it_has_few_points() -> None:
    nodes, weights = gauss_nodes(np.array([0.25, 1.0]), np.array([1.0, 99.0]), 16)
    assert sorted(nodes) == pytest.approx([0.25, 1.0])
    assert sorted(weights) == pytest.approx([1.0, 99.0])


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (48, 48), (8, 4)])
def test_the_exact_decomposition(shape: tuple[int, int]) -> None:
    v = alignment_vector(*shape)
    found = decomposed(v, 4)
    s = torch.linalg.svdvals(v.double())
    assert found.s1 == pytest.approx(float(s[0]), rel=1e-12)
    torch.testing.assert_close(found.triples.s.double(), s[: len(found.triples.s)], rtol=1e-6, atol=0)
    gram = v.double() @ v.double().T
    assert found.c_norm == pytest.approx(float(gram.norm() / v.double().norm()), rel=1e-10)
    c = gram / float(s[0]) ** 2
    m = (torch.eye(shape[0], dtype=torch.float64) - c) @ (torch.eye(shape[0], dtype=torch.float64) - c)
    nodes, counts = np.array(found.nodes), np.array(found.counts)
    assert counts.sum() == pytest.approx(shape[0])
    assert (counts * nodes).sum() == pytest.approx(float(m.trace()), rel=1e-10)
    assert (counts * nodes**2).sum() == pytest.approx(float((m @ m).trace()), rel=1e-10)


def test_the_randomised_decomposition_of_large_modules_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    v = alignment_vector(300, 420, rank=10)
    exact = decomposed(v, 8)
    monkeypatch.setattr(spectrum, "EXACT_SVD", 100)
    found = decomposed(v, 8)
    assert found.error <= 1e-5
    assert found.s1 == pytest.approx(exact.s1, rel=1e-6)
    torch.testing.assert_close(found.triples.s, exact.triples.s, rtol=1e-5, atol=0)
    angles = torch.linalg.svdvals(found.triples.r.T @ exact.triples.r)
    assert float(angles.min()) > 1 - 1e-4
    eye = torch.eye(8)
    torch.testing.assert_close(found.triples.r.T @ found.triples.r, eye, rtol=0, atol=1e-5)
    assert found.counts == pytest.approx(exact.counts, rel=1e-2)
    again = decomposed(v, 8)
    assert torch.equal(again.triples.r, found.triples.r)


def test_a_stated_error_is_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "EXACT_SVD", 16)
    monkeypatch.setattr(spectrum, "KRYLOV_STEPS", 2)  # too few on purpose: pure noise has no gap
    v = torch.randn(200, 240, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = decomposed(v, 4)
    t = found.triples
    residual = (v.double().T @ t.u.double() - t.r.double() * t.s.double()).norm(dim=0).max() / found.s1
    assert 1e-3 < found.error < 1.0
    assert float(residual) == pytest.approx(found.error, rel=1e-4)


def test_directions_at_rounding_level_are_not_kept() -> None:
    g = torch.Generator().manual_seed(0)
    v = (torch.randn(32, 2, generator=g) @ torch.randn(2, 40, generator=g)).float()
    assert len(decomposed(v, 8).triples.s) == 2


@pytest.mark.parametrize("energy", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("exact", [True, False])
def test_as_many_triples_as_the_energy_needs(monkeypatch: pytest.MonkeyPatch, energy: float, exact: bool) -> None:
    """Against all singular values in double precision; above EXACT_SVD by a Krylov space or the Gram matrix."""
    monkeypatch.setattr(spectrum, "EXACT_SVD", 1024 if exact else 16)
    for shape in ((120, 200), (200, 120), (128, 128)):
        v = alignment_vector(*shape, rank=5)
        norm = float(v.double().norm())
        held = torch.linalg.svdvals(v.double()).square().cumsum(0) / norm**2
        expected = int((held < energy).sum()) + 1
        found = spectrum_of(v, Keep(energy, 512, 2), norm)
        assert len(found.triples.s) == max(expected, 2)
        assert found.triples.u.shape == (shape[0], 2)
        assert needed(shares_of(found.triples.s, norm), energy) == expected, "what was kept is found to be enough"
        assert found.error < 1e-5
        gap = found.triples.r.T @ found.triples.r - torch.eye(len(found.triples.s))
        assert float(gap.abs().max()) < 1e-5
        assert len(spectrum_of(v, Keep(energy, 3, 1), norm).triples.s) == min(expected, 3), "the cap holds"
