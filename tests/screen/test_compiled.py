"""Compiled products and quantiles against float64 and against their plain forms, and that threads change no bit."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.screen import matmul as products
from app.screen import null_quartiles as nulls
from app.screen import quadratic_form as quadratic
from app.screen.compiled import numba_support as compiling
from app.screen.compiled.numba_support import PLAIN, kernel
from app.screen.compiled.warm import warm
from app.screen.matmul import both, left, right

pytest.importorskip("numba")
kernels = kernel("matmul")

SHAPES = [(1, 32), (2, 32), (3, 64), (23, 96), (24, 32), (25, 64), (479, 32), (481, 64), (1000, 160)]
"""Around a register tile (3 rows), a block (24), a fold (480)."""


def drawn(d_out: int, d_in: int, n: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(v, y, x): v bfloat16 of that scale, y and x float32."""
    g = torch.Generator().manual_seed(seed)
    v = (torch.randn(d_out, d_in, generator=g, dtype=torch.float64) * scale).bfloat16()
    return v, torch.randn(d_out, n, generator=g), torch.randn(d_in, n, generator=g)


def check(v: Tensor, y: Tensor, x: Tensor, tolerance: float = 1e-6) -> None:
    """Every column within `tolerance` of the float64 product, in terms of |V|·|x|: what cancels is not resolved."""
    t, h = both(v, y, x)
    assert t.dtype is torch.float64
    assert h.dtype is torch.float32
    wide = v.double()
    for got, matrix, factor in ((t, wide.T, y), (h, wide, x), (right(v, x), wide, x)):
        error = (got.double() - matrix @ factor.double()).norm(dim=0)
        size = (matrix.abs() @ factor.double().abs()).norm(dim=0)
        assert bool((error <= tolerance * size).all()), float((error / size).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64])
def test_products_agree_with_float64(shape: tuple[int, int], n: int) -> None:
    v, y, x = drawn(*shape, n)
    assert products._fast(v, x) is kernels
    check(v, y, x)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 130), st.integers(1, 9), st.integers(1, 20), st.floats(-30.0, 30.0), st.integers(0, 1000))
def test_any_shape_and_magnitude(d_out: int, lines: int, n: int, exponent: float, seed: int) -> None:
    check(*drawn(d_out, 32 * lines, n, 10.0**exponent, seed))


@pytest.mark.parametrize("d_in", [1, 31, 33, 100])
def test_widths_the_kernels_do_not_take_go_through_torch(d_in: int) -> None:
    v, y, x = drawn(50, d_in, 3)
    assert products._fast(v, x) is None
    check(v, y, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_storage_goes_through_torch(dtype: torch.dtype) -> None:
    v, y, x = drawn(50, 64, 3)
    assert products._fast(v.to(dtype), x) is None
    check(v.to(dtype), y, x)


def test_a_view_that_is_not_contiguous_is_not_read_as_if_it_were() -> None:
    v, y, x = drawn(64, 64, 3)
    check(v.T, y, x)


def test_subnormal_values_of_v_are_read_as_what_they_are() -> None:
    v = torch.full((48, 64), 2.0**-130).bfloat16()
    y, x = torch.full((48, 1), 2.0**100), torch.full((64, 1), 2.0**100)
    t, h = both(v, y, x)
    assert set(t.flatten().tolist()) == {48 * 2.0**-30}
    assert set(h.flatten().tolist()) == {64 * 2.0**-30}


def test_not_finite_stays_not_finite() -> None:
    v, y, x = drawn(50, 64, 3)
    x[5, 1] = float("nan")
    y[7, 2] = float("inf")
    t, h = both(v, y, x)
    assert h[:, 1].isnan().all()
    assert not t[:, 2].isfinite().any()
    assert t[:, :2].isfinite().all()
    assert h[:, [0, 2]].isfinite().all()


def test_a_column_does_not_depend_on_its_neighbours_nor_on_threads() -> None:
    v, y, x = drawn(997, 256, 24)
    t, h = both(v, y, x)
    alone = [both(v, y[:, i : i + 1], x[:, i : i + 1]) for i in range(24)]
    assert torch.equal(torch.cat([one[0] for one in alone], 1), t)
    assert torch.equal(torch.cat([one[1] for one in alone], 1), h)
    with ThreadPoolExecutor(8) as pool:
        for other_t, other_h in pool.map(lambda _: both(v, y, x), range(32)):
            assert torch.equal(other_t, t)
            assert torch.equal(other_h, h)
    assert torch.equal(right(v, x), h)


def test_the_plain_form_gives_the_same() -> None:
    v, y, x = drawn(300, 128, 8)
    t, h = both(v, y, x)
    torch.testing.assert_close(left(v, y), t, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((v.float() @ x), h, rtol=1e-5, atol=1e-4)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled kernels, as on a machine without numba."""
    monkeypatch.setenv(PLAIN, "1")
    kernel.cache_clear()
    yield
    monkeypatch.undo()
    kernel.cache_clear()


@pytest.mark.usefixtures("plain")
def test_without_numba_everything_still_works() -> None:
    assert compiling.kernel("matmul") is None
    assert warm() < 5.0
    check(*drawn(100, 64, 5))


def test_quantiles_are_the_same_compiled_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_quartiles(n: int) -> list[float]:
        share = np.linspace(1.0, 0.3, n) ** 2
        share /= share.sum()
        nodes, counts = np.linspace(0.0, 1.0, 12).tolist(), [4096 / 12] * 12
        found = [*nulls.share_quartiles(share, 4, 4096), *nulls.projection_quartiles(share, nodes, counts)]
        return [float(x) for x in (*found, nulls.inner_quartile(share, np.linspace(0.1, 1.0, n), 4096))]

    for n in (1, 2, 8, 16, 64):
        fast = all_quartiles(n)
        with monkeypatch.context() as patch:
            patch.setattr(quadratic, "kernel", lambda name: None)
            slow = all_quartiles(n)
        assert fast == pytest.approx(slow, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1.0, 1e4), st.floats(0.0, 1.0)), min_size=1, max_size=12),
    st.floats(1.0, 1e6),
    st.floats(-1.0, 1.0),
)
def test_probability_is_the_same_compiled_and_not(
    terms: list[tuple[float, float, float]], against: float, off: float
) -> None:
    """Positive weights against a negative one, at a mean within a deviation of 0: where quartiles are looked for."""
    fast = kernel("quadratic_form")
    assert fast is not None
    w, dof, dw = (np.array([column]) for column in zip(*terms, (0.0, against, -1.0), strict=True))
    w[0, -1] = -((w @ dof[0]).item() + off * math.sqrt(2.0 * (w**2 @ dof[0]).item())) / against
    slow_value, slow_slope = quadratic.probability(w, dof, dw)
    value, slope = fast.probability(w, dof[0], dw, quadratic._SETTING)
    assert value[0] == pytest.approx(slow_value[0], abs=1e-9)
    spread = math.sqrt(2.0 * (w**2 @ dof[0]).item())
    assert slope[0] == pytest.approx(slow_slope[0], rel=1e-7, abs=1e-8 * (np.abs(dw) @ dof[0]).item() / spread)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rest", [0.0, 6.6e-6])
def test_weights_of_one_sign_leave_no_doubt(sign: float, rest: float) -> None:
    """Few degrees of freedom at a mean within CANTELLI deviations, and many at next to no weight: φ would overflow."""
    fast = kernel("quadratic_form")
    assert fast is not None
    w, dof, dw = sign * np.array([[1.335, rest]]), np.array([[1.0, 83600.0]]), np.array([[0.7, -1.0]])
    certain = 0.0 if sign > 0.0 else 1.0
    for value, slope in (quadratic.probability(w, dof, dw), fast.probability(w, dof[0], dw, quadratic._SETTING)):
        assert (value[0], slope[0]) == (certain, 0.0)


@pytest.mark.parametrize("x", [1e-5, 0.7, 1.0, math.sqrt(2.0), 1.5, 2.0, 1e18, 1e300])
def test_logarithm(x: float) -> None:
    fast = kernel("quadratic_form")
    assert fast is not None
    assert fast._log(x) == pytest.approx(math.log(x), rel=4e-16, abs=1e-16)


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_angle(y: float, x: float) -> None:
    fast = kernel("quadratic_form")
    assert fast is not None
    y += 0.0  # −0 becomes 0: on the negative axis the two differ in sign, and no weight leads there
    if max(abs(x), abs(y)) > 1e-200:
        assert fast._angle(y, x) == pytest.approx(math.atan2(y, x), abs=1e-15, rel=1e-15)
