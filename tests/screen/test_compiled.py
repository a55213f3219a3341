"""Compiled quantiles against their plain form."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.screen import null_quartiles as nulls
from app.screen import quadratic_form as quadratic
from app.screen.compiled import numba_support as compiling
from app.screen.compiled.numba_support import PLAIN, kernel
from app.screen.compiled.warm import warm

pytest.importorskip("numba")


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
    assert compiling.kernel("rotations") is None
    assert warm() < 5.0


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
