"""The decomposition of small matrices: right, and the same to the bit compiled or not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from app.screen import core_svd as module
from app.screen.compiled.numba_support import PLAIN, rotations_kernel
from app.screen.compiled.warm import warm
from app.screen.core_svd import Array, cholesky, core_svd, multiply, round_robin, summed


def matrix(p: int, q: int, seed: int, *, ties: bool = False, decades: float = 0.0) -> Array:
    """Random singular vectors; equal singular values, or some that fall by that many powers of ten."""
    rng, n = np.random.default_rng(seed), min(p, q)
    u, _ = np.linalg.qr(rng.standard_normal((p, n)))
    v, _ = np.linalg.qr(rng.standard_normal((q, n)))
    s = np.ones(n) if ties else 10.0 ** -np.linspace(0.0, decades, n)
    found: Array = (u * s) @ v.T
    return found


CASES = given(
    p=st.integers(1, 17),
    q=st.integers(1, 17),
    seed=st.integers(0, 999),
    ties=st.booleans(),
    decades=st.sampled_from([0.0, 2.0, 5.0]),
)


@settings(max_examples=60, deadline=None)
@CASES
def test_is_the_singular_value_decomposition(p: int, q: int, seed: int, ties: bool, decades: float) -> None:
    core = matrix(p, q, seed, ties=ties, decades=decades)
    found = core_svd(core)
    assert found is not None
    u, s, v = found
    assert_allclose(s, np.linalg.svd(core, compute_uv=False)[: len(s)], rtol=1e-9)
    assert_allclose((u * s) @ v.T, core, atol=1e-9)
    for side in (u, v):
        assert_allclose(side.T @ side, np.eye(len(s)), atol=1e-8)


@pytest.mark.skipif(rotations_kernel() is None, reason="numba is not installed")
@settings(max_examples=60, deadline=None)
@CASES
def test_compiled_and_plain_agree_to_the_bit(p: int, q: int, seed: int, ties: bool, decades: float) -> None:
    core = matrix(p, q, seed, ties=ties, decades=decades)
    fast = core_svd(core)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "rotations_kernel", lambda: None)
        plain = core_svd(core)
    assert fast is not None
    assert plain is not None
    for one, two in zip(fast, plain, strict=True):
        assert one.tobytes() == two.tobytes()


def test_without_numba_the_plain_form_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAIN, "1")
    rotations_kernel.cache_clear()
    try:
        assert rotations_kernel() is None
        assert warm() < 5.0
    finally:
        rotations_kernel.cache_clear()


def test_zeros_have_no_singular_values() -> None:
    found = core_svd(np.zeros((3, 2)))
    assert found is not None
    assert [x.shape for x in found] == [(3, 0), (0,), (2, 0)]


def test_what_does_not_converge_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEPS", 1)
    assert core_svd(matrix(9, 9, 0, decades=1.0)) is None


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 9])
def test_round_robin_meets_every_pair_once_in_disjoint_rounds(n: int) -> None:
    met: list[tuple[int, int]] = []
    for pairs in round_robin(n):
        real = [(int(i), int(j)) for i, j in pairs if i >= 0]
        assert len({k for pair in real for k in pair}) == 2 * len(real)
        met += real
    assert sorted(met) == [(i, j) for i in range(n) for j in range(i + 1, n)]


@pytest.mark.parametrize("dependent", [0, 1, 3])
def test_cholesky_leaves_out_what_depends_on_others(dependent: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 40))
    x = np.concatenate([x, rng.standard_normal((dependent, 5)) @ x, np.zeros((1, 40))])
    left = cholesky(x @ x.T)
    assert left.shape == (6 + dependent, 5)
    assert_allclose(left @ left.T, x @ x.T, atol=1e-11 * float((x @ x.T).max()))


def test_sums_and_products_are_added_in_their_order() -> None:
    x = np.array([[1.0, 1e16, -1e16], [1e16, -1e16, 1.0]])
    assert summed(x).tolist() == [0.0, 1.0]
    assert_array_equal(multiply(x, np.ones((3, 1)))[:, 0], summed(x))
