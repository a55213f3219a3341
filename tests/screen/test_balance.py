"""Balanced factors: the update they are of, their form, that they are found again as they are, and on any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from app.domain.errors import BAD_NUMBERS, SCREENING_TIMEOUT, Refused
from app.domain.lora import Adapter, LoraModule, ServingDtype
from app.domain.policy import Policy
from app.screen.balance import balance, balance_all, balanced, resolution
from app.screen.screen import screen
from tests.screen.emulated import strays
from tests.support.references import random_adapter, tiny_reference

ROOT = Path(__file__).parents[2]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def module(b: Tensor, a: Tensor, dtype: torch.dtype) -> LoraModule:
    return LoraModule("m", a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0)


def drawn(
    d_out: int, d_in: int, rank: int, dtype: torch.dtype, *, seed: int = 0, ties: bool = False, decades: float = 0.0
) -> LoraModule:
    """Factors as training leaves them: A of rows of length about 1, B's columns falling by so many powers of ten."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, d_in, generator=g, dtype=torch.float64) / d_in**0.5
    b = torch.randn(d_out, rank, generator=g, dtype=torch.float64) * torch.logspace(0, -decades, rank)
    if ties:  # equal singular values, exactly: rows of a Hadamard-like pattern of ±1
        a = torch.eye(rank, d_in, dtype=torch.float64)
        b = torch.eye(d_out, rank, dtype=torch.float64)
    return module(b, a, dtype)


def of(m: LoraModule) -> Tensor:
    return m.b.double() @ m.a.double()


def same_bytes(one: LoraModule, two: LoraModule) -> bool:
    return all(
        x.shape == y.shape and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))
        for x, y in ((one.a, two.a), (one.b, two.b))
    )


SHAPES = given(
    d_out=st.integers(1, 40),
    d_in=st.integers(1, 40),
    rank=st.integers(1, 24),
    seed=st.integers(0, 9999),
    ties=st.booleans(),
    decades=st.sampled_from([0.0, 1.0, 4.0, 9.0]),
    dtype=st.sampled_from(DTYPES),
)


@settings(max_examples=150, deadline=None)
@SHAPES
def test_is_the_update_within_rounding_and_of_its_rank_at_most(
    d_out: int, d_in: int, rank: int, seed: int, ties: bool, decades: float, dtype: torch.dtype
) -> None:
    before = drawn(d_out, d_in, rank, dtype, seed=seed, ties=ties, decades=decades)
    after = balance(before)
    assert after.rank <= min(rank, d_in, d_out)
    assert (after.a.dtype, after.b.dtype, after.scaling) == (dtype, dtype, before.scaling)
    allowed = 2.0 * ROUNDOFF[dtype] + rank * resolution(dtype)
    assert float((of(after) - of(before)).norm()) <= allowed * float(of(before).norm())
    assert balanced(after)


@settings(max_examples=150, deadline=None)
@SHAPES
def test_balancing_again_changes_no_byte(
    d_out: int, d_in: int, rank: int, seed: int, ties: bool, decades: float, dtype: torch.dtype
) -> None:
    once = balance(drawn(d_out, d_in, rank, dtype, seed=seed, ties=ties, decades=decades))
    assert same_bytes(balance(once), once)
    padded = module(torch.nn.functional.pad(once.b, (0, 3)), torch.nn.functional.pad(once.a, (0, 0, 0, 3)), dtype)
    assert same_bytes(balance(padded), once)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(64, 96, 8), (300, 200, 128), (32, 32, 32)])
def test_form(d_out: int, d_in: int, rank: int, dtype: torch.dtype) -> None:
    """Columns of B and rows of A orthogonal and of equal length, descending, each row's largest entry above zero."""
    made = balance(drawn(d_out, d_in, rank, dtype))
    a, b = made.a.double(), made.b.double()
    lengths = a.norm(dim=1)
    torch.testing.assert_close(b.norm(dim=0), lengths, rtol=4 * ROUNDOFF[dtype], atol=0)
    singular = torch.linalg.svdvals(of(made))[: made.rank]
    torch.testing.assert_close(lengths.square(), singular, rtol=0, atol=4 * ROUNDOFF[dtype] * float(singular[0]))
    assert bool((lengths.diff() <= 4 * ROUNDOFF[dtype] * lengths[0]).all())
    for gram in (a @ a.T, b.T @ b):
        cosines = gram / gram.diagonal().sqrt().outer(gram.diagonal().sqrt())
        assert float((cosines - torch.eye(made.rank)).abs().max()) <= 4 * ROUNDOFF[dtype]
    assert bool((a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all())


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_engine_computes_what_was_measured_whatever_the_input(dtype: torch.dtype) -> None:
    """The bound of √3 unit roundoffs, over inputs of every kind: none needs to be like another."""
    made = balance(drawn(64, 96, 16, dtype, decades=2.0))
    g = torch.Generator().manual_seed(4)
    inputs = [torch.randn(96, 200, generator=g), torch.eye(96), torch.linalg.pinv(made.a.double()).float()]
    assert strays(made.b, made.a, torch.cat(inputs, 1)) <= 3.0**0.5 * ROUNDOFF[dtype] * 1.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zeroed", ["a", "b", "both"])
def test_a_zero_update_is_one_pair_of_zeros(dtype: torch.dtype, zeroed: str) -> None:
    m = drawn(8, 12, 4, dtype)
    made = balance(module(m.b * (zeroed == "a"), m.a * (zeroed == "b"), dtype))
    assert (made.a.shape, made.b.shape) == ((1, 12), (8, 1))
    assert not made.a.any()
    assert not made.b.any()
    assert same_bytes(balance(made), made)


@pytest.mark.parametrize(
    ("dtype", "power"),
    [(torch.bfloat16, -20), (torch.bfloat16, 20), (torch.float16, -3), (torch.float16, 6), (torch.float32, -30)],
)
def test_small_and_large_updates_are_kept(dtype: torch.dtype, power: int) -> None:
    m = drawn(32, 48, 4, torch.float32)
    before = module(m.b.double() * 2.0**power, m.a, dtype)
    after = balance(before)
    assert float((of(after) - of(before)).norm()) <= 2.0 * ROUNDOFF[dtype] * float(of(before).norm())


def test_what_float16_cannot_hold_is_served_as_none() -> None:
    m = drawn(32, 48, 4, torch.float32)
    made = balance(module(m.b * 2.0**-20, m.a * 2.0**-6, torch.float16))
    assert not made.a.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_and_spectra_of_real_adapters(dtype: torch.dtype) -> None:
    """256 pairs over four powers of ten; what lies below the dtype's resolution is left out."""
    before = drawn(600, 500, 256, dtype, decades=4.0)
    after = balance(before)
    assert 0 < after.rank <= 256
    assert float((of(after) - of(before)).norm()) <= 1.5 * ROUNDOFF[dtype] * float(of(before).norm())
    kept = torch.linalg.svdvals(of(after))
    assert float(kept[after.rank - 1]) >= 0.4 * resolution(dtype) * float(kept[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_that_cancel_are_refused(dtype: torch.dtype) -> None:
    m = drawn(16, 24, 2, dtype)
    small = drawn(16, 24, 2, dtype, seed=1)
    for b, a in (
        (torch.cat([m.b, -m.b], 1), torch.cat([m.a, m.a])),
        (torch.cat([m.b, -m.b, small.b * 2.0**-14], 1), torch.cat([m.a, m.a, small.a])),
    ):
        with pytest.raises(Refused, match="cancel") as caught:
            balance(module(b, a, dtype))
        assert (caught.value.code, caught.value.param) == (BAD_NUMBERS, "m")


def test_what_leaves_float16_once_balanced_is_refused() -> None:
    wide = torch.full((4096, 1), 60_000.0), torch.full((1, 2), 60_000.0)
    with pytest.raises(Refused, match="range of float16") as caught:
        balance(module(*wide, torch.float16))
    assert caught.value.code is BAD_NUMBERS


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_balanced_sees_what_is_not(dtype: torch.dtype) -> None:
    made = balance(drawn(32, 48, 4, dtype))
    assert balanced(made)
    tiny = made.a.clone()
    tiny[0, 0] = torch.finfo(dtype).tiny / 2.0
    other = torch.cat([made.a[:1] + made.a[1:2], made.a[1:]])
    for b, a in (
        (made.b * 4.0, made.a / 4.0),
        (made.b, tiny),
        (made.b, other),
        (torch.cat([made.b, made.b[:, :1] * 2.0**-15], 1), torch.cat([made.a, made.a[:1] * 2.0**-15])),
        (torch.cat([made.b, made.b[:, :1]], 1), torch.cat([made.a, -made.a[:1]])),
    ):
        assert not balanced(module(b, a, dtype))


@pytest.mark.parametrize("dtype", list(ServingDtype))
def test_scores_are_those_of_the_upload(tmp_path: Path, dtype: ServingDtype) -> None:
    """To 1e-4 of an IQR where float32 is served. A second rounding to 16 bits moves a score by more."""
    reference = tiny_reference(tmp_path)
    policy = Policy(tau=100.0, top_k=4, max_pruned_share=1.0)
    allowed = {ServingDtype.FLOAT32: 1e-4, ServingDtype.FLOAT16: 5e-3, ServingDtype.BFLOAT16: 4e-2}[dtype]
    for seed in range(4):
        adapter = random_adapter(reference, seed=seed, rank=8, dtype=dtype)
        for one, two in zip(
            screen(adapter, reference, policy).modules,
            screen(balance_all(adapter), reference, policy).modules,
            strict=True,
        ):
            for comparison, score in one.scores.items():
                assert two.scores[comparison] == pytest.approx(score, abs=allowed)
    reference.close()


def test_past_the_deadline_nothing_is_balanced() -> None:
    adapter = Adapter((drawn(8, 8, 2, torch.float32),), ServingDtype.FLOAT32)
    for deadline in (0.0, float("nan")):
        with pytest.raises(Refused, match="longer than") as caught:
            balance_all(adapter, deadline_s=deadline)
        assert caught.value.code is SCREENING_TIMEOUT
    assert balance_all(adapter, deadline_s=60.0).balanced


ELSEWHERE = """
import hashlib, json, sys
from safetensors.torch import load_file
from app.domain.lora import Adapter, LoraModule, ServingDtype
from app.screen.balance import balance_all
t = load_file(sys.argv[1])
modules = tuple(LoraModule(n, t[n + ".a"], t[n + ".b"], 1.0) for n in sorted({k[:-2] for k in t}))
made = balance_all(Adapter(modules, ServingDtype.BFLOAT16), workers=int(sys.argv[2]))
raw = [x.contiguous().view(-1).view(__import__("torch").uint8).numpy().tobytes() for m in made.modules for x in (m.a, m.b)]
print(json.dumps([hashlib.sha256(b).hexdigest() for b in raw]))
"""
MACHINES = [
    ({}, "1"),
    (
        {
            "SCREEN_PLAIN": "1",
            "OMP_NUM_THREADS": "2",
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        },
        "2",
    ),
    ({"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "NUMBA_CPU_NAME": "generic"}, "1"),
]


@pytest.mark.slow
def test_the_same_bytes_with_other_instructions_threads_and_without_kernels(tmp_path: Path) -> None:
    """Stands for other machines; ties, near ties and dependent rows included."""
    tensors: dict[str, Tensor] = {}
    for dtype in DTYPES:
        for i, m in enumerate(
            [
                drawn(200, 150, 16, dtype),
                drawn(64, 64, 12, dtype, ties=True),
                drawn(96, 300, 24, dtype, decades=3.0),
                module(torch.ones(9, 3), torch.ones(3, 7), dtype),
            ]
        ):
            name = f"{str(dtype).removeprefix('torch.')}.{i}"
            tensors |= {f"{name}.a": m.a.clone(), f"{name}.b": m.b.clone()}
    save_file(tensors, tmp_path / "factors.safetensors")
    found = []
    for machine, workers in MACHINES:
        command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(tmp_path / "factors.safetensors"), workers]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **machine}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert len(found[0]) == len(tensors)
    assert all(one == found[0] for one in found[1:])
