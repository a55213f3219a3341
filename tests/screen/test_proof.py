"""Properties of whole screenings: exact on any shape, the same however an update is written and wherever it is measured."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from app.domain.lora import Adapter, LoraModule, ServingDtype, TargetModel
from app.domain.policy import Comparison, Policy, Unscorable
from app.domain.verdict import Decision, Outcome
from app.screen.decide import decide
from app.screen.reference.open import Reference, open_reference
from app.screen.screen import screen
from tests.screen.cases import ALL, alignment_vector, factors, module
from tests.screen.oracle import Dense
from tests.screen.test_decide import found
from tests.screen.test_distances import CORNERS
from tests.support.adapters import Upload, key
from tests.support.references import make_reference, random_adapter, tiny_reference

ROOT = Path(__file__).parents[2]
POLICY = Policy(tau=1.5, top_k=4, max_pruned_share=1.0)
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    opened = tiny_reference(tmp_path_factory.mktemp("reference"))
    yield opened
    opened.close()


# ---- exact, on any shape -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    d_out=st.integers(1, 48),
    d_in=st.integers(2, 48),
    rank=st.integers(1, 60),
    k=st.integers(1, 4),
    norm=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 10_000),
)
def test_every_shape_agrees_with_the_dense_oracle(
    d_out: int, d_in: int, rank: int, k: int, norm: float, seed: int
) -> None:
    """Ranks beyond both sides, d_out = r, single rows: what the released code skips or crashes on.

    Squared distances within 1e-6 of the squared norms they are differences of: near 0 a distance itself is cancellation.
    """
    assume(k < min(d_out, d_in) or k == 1)
    m = module(alignment_vector(d_out, d_in, seed=seed))
    b, a = factors(d_out, d_in, rank, seed=seed, norm=norm)
    dense = Dense(m.v.double(), min(k, m.r.shape[1]))
    scored, cosine = m.measure(b, a, min(k, m.r.shape[1]))
    for comparison in ALL:
        expected = float(dense.distance(b @ a, comparison))
        scale = norm + (float(dense.v.norm()) if comparison is Comparison.ALIGNMENT else 0.0)
        assert scored[comparison].distance ** 2 == pytest.approx(expected**2, rel=1e-6, abs=1e-6 * scale**2), comparison
    assert cosine == pytest.approx(dense.cosine(b @ a), rel=1e-6)


@pytest.mark.parametrize(("entry", "factor"), [(1e8, "a"), (1e-8, "a"), (1e8, "b")])
@pytest.mark.ruling("G04")
def test_an_outlier_moves_no_other_measure(entry: float, factor: str) -> None:
    """G04: nothing is normalised by a range the uploader could stretch."""
    m = module(alignment_vector(32, 24))
    b, a = factors(32, 24, 4)
    (a if factor == "a" else b)[0, 0] = entry
    dense = Dense(m.v.double(), 4)
    for comparison, scored in m.measure(b, a)[0].items():
        assert scored.distance == pytest.approx(float(dense.distance(b @ a, comparison)), rel=1e-6)
        assert scored.score is None or math.isfinite(scored.score)


# ---- dimension-insensitive ---------------------------------------------------------------------------------------


def test_projection_tells_aligned_from_random_at_every_dimension_rank_and_norm() -> None:
    near, plain = [], []
    for i, (shape, rank, norm, v_norm) in enumerate(CORNERS):
        m = module(alignment_vector(*shape, seed=i, norm=v_norm))
        for seed in range(3):
            b, a = factors(*shape, rank, seed=seed, norm=norm)
            inside = m.u[:, :4].double() @ (m.u[:, :4].double().T @ b)
            mixed = 0.5**0.5 * (b / b.norm() + inside / inside.norm())
            near.append(m.score(mixed, a, Comparison.PROJECTION))
            plain.append(m.score(*factors(*shape, rank, seed=100 + seed, norm=norm), Comparison.PROJECTION))
    assert (np.array(near)[:, None] < np.array(plain)[None, :]).mean() >= 0.98


@pytest.mark.parametrize("comparison", [Comparison.INPUT, Comparison.ALIGNMENT])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 8), norm=st.sampled_from([0.1, 1.0, 10.0]))
def test_more_of_what_is_looked_for_scores_higher(comparison: Comparison, seed: int, rank: int, norm: float) -> None:
    from tests.screen.test_distances import MODULE, planted

    scores = [MODULE.score(*planted(MODULE, comparison, rank, s, seed, norm), comparison) for s in (0.3, 0.6, 0.9)]
    assert scores == sorted(scores)


# ---- the same however it is written ------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(power=st.integers(-2, 2), shift=st.integers(-6, 6), seed=st.integers(0, 1000))
@pytest.mark.ruling("G02")
def test_moving_scale_between_a_b_and_alpha_changes_no_verdict(
    reference: Reference, power: int, shift: int, seed: int
) -> None:
    """G02, through validate: powers of two, so that the same ΔW is meant to the bit."""
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, max_rank=8)
    plain = Upload.valid(target, alpha=8, seed=seed)
    moved = plain.having(lora_alpha=8 * 2.0**power)
    for name in target.modules:
        a, b = plain.tensors[key(name, "A")], plain.tensors[key(name, "B")]
        moved = moved.adding({key(name, "A"): a * 2.0**shift, key(name, "B"): b * 2.0 ** (-power - shift)})
    one, two = (screen(upload.validate(), reference, POLICY) for upload in (plain, moved))
    assert (one.outcome, one.reason) == (two.outcome, two.reason)
    for m, n in zip(one.modules, two.modules, strict=True):
        assert m.decision is n.decision
        for comparison in Comparison:
            assert m.scores[comparison] == pytest.approx(n.scores[comparison], abs=1e-4)


def test_alpha_alone_against_b_gives_the_very_same_bytes(reference: Reference) -> None:
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, max_rank=8)
    plain = Upload.valid(target, alpha=8)
    b = {key(name, "B"): plain.tensors[key(name, "B")] / 4 for name in target.modules}
    moved = plain.having(lora_alpha=32).adding(b)
    one, two = (upload.validate().modules for upload in (plain, moved))
    assert all(torch.equal(m.b, n.b) and torch.equal(m.a, n.a) for m, n in zip(one, two, strict=True))


@settings(max_examples=15, deadline=None)
@given(extra=st.integers(1, 8), order=st.randoms(use_true_random=False))
def test_rank_padding_and_the_order_of_modules_change_no_score(reference: Reference, extra: int, order: Any) -> None:
    plain = random_adapter(reference)
    padded = [
        LoraModule(
            m.name,
            torch.cat([m.a, torch.zeros(extra, m.a.shape[1])], 0),
            torch.cat([m.b, torch.zeros(m.b.shape[0], extra)], 1),
            1.0,
        )
        for m in plain.modules
    ]
    order.shuffle(padded)
    one, two = (screen(x, reference, POLICY) for x in (plain, Adapter(tuple(padded), plain.dtype)))
    for m, n in zip(one.modules, two.modules, strict=True):
        assert (m.name, m.decision, m.reason) == (n.name, n.decision, n.reason)
        for comparison in Comparison:
            assert m.scores[comparison] == pytest.approx(n.scores[comparison], abs=1e-4)


# ---- not a number never passes -----------------------------------------------------------------------------------

NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


@settings(max_examples=100, deadline=None)
@given(
    bad=NOT_FINITE,
    where=st.sampled_from(["score", "update_norm"]),
    unscorable=st.sampled_from(list(Unscorable)),
    cap=st.sampled_from([None, 0, 1]),
    keeps=st.booleans(),
    budget=st.sampled_from([None, 1e300]),
    others=st.lists(st.floats(-5, 5), max_size=4),
)
@pytest.mark.ruling("G03")
def test_no_policy_lets_a_value_pass_that_is_not_finite(
    bad: float, where: str, unscorable: Unscorable, cap: int | None, keeps: bool, budget: float | None, others: Any
) -> None:
    policy = Policy(
        tau=1e300,
        unscorable=unscorable,
        max_pruned=cap,
        cap_keeps=keeps,
        max_pruned_share=1.0,
        max_update_ratio=1e300,
        max_adapter_score=budget,
        max_block_score=budget,
    )
    broken = found("m.bad", bad) if where == "score" else found("m.bad", 0.0, update_norm=bad)
    outcome, _, modules = decide([broken, *(found(f"m.{i}", s) for i, s in enumerate(others))], policy)
    assert outcome is Outcome.REJECTED
    assert next(m for m in modules if m.name == "m.bad").decision is Decision.REJECT


# ---- the same on any machine -------------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys
from safetensors.torch import load_file
from pathlib import Path
from app.domain.manifest import verdict_json
from app.domain.policy import Policy
from app.screen.reference.open import open_reference
from app.screen.screen import screen
from app.domain.lora import Adapter, LoraModule, ServingDtype
opened = open_reference(Path(sys.argv[1]), None)
verdicts = []
for path in sorted(Path(sys.argv[2]).iterdir()):  # read, not drawn: random numbers depend on the instructions
    t = load_file(path)
    modules = tuple(LoraModule(name, t[name + ".a"], t[name + ".b"], 1.0) for name in sorted(opened.modules))
    adapter = Adapter(modules, ServingDtype.FLOAT32)
    verdicts.append(screen(adapter, opened, Policy(tau=0.4, max_pruned_share=1.0)))
print(json.dumps([verdict_json(v) for v in verdicts]))
"""
MACHINES = {
    "as it is": {},
    "plain instructions, two threads": {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def test_other_instructions_and_threads_give_the_same_decisions_and_ids(tmp_path: Path) -> None:
    """Stands for other machines: torch and the BLAS told to use other instruction sets."""
    directory, adapters = make_reference(tmp_path), tmp_path / "adapters"
    adapters.mkdir()
    opened = open_reference(directory, None)
    for seed in range(4):
        tensors = {
            f"{m.name}.{side}": getattr(m, side) for m in random_adapter(opened, seed=seed).modules for side in "ab"
        }
        save_file(tensors, adapters / f"{seed}.safetensors")
    opened.close()
    reports = []
    for machine in MACHINES.values():
        command = [sys.executable, "-c", ELSEWHERE, str(directory), str(adapters)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **machine}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    first = reports[0]
    assert {report["outcome"] for report in first} == {"pruned"}
    for report in reports[1:]:
        for one, two in zip(first, report, strict=True):
            assert (one["id"], one["outcome"]) == (two["id"], two["outcome"])
            for m, n in zip(one["modules"], two["modules"], strict=True):
                assert (m["decision"], m["reason"]) == (n["decision"], n["reason"])
                assert m["scores"] == {c: pytest.approx(score, abs=2e-5) for c, score in n["scores"].items()}


# ---- sanitising ends ---------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(-0.5, 2.0), budget=st.sampled_from([None, 1.0, 3.0]))
@pytest.mark.ruling("G08")
def test_what_is_left_is_screened_clean_whatever_the_policy(
    reference: Reference, seed: int, tau: float, budget: float | None
) -> None:
    """Pruning once is enough: screen(sanitise(x)) passes, and cuts out nothing more."""
    policy = replace(POLICY, tau=tau, max_adapter_score=budget, max_block_score=budget)
    adapter = random_adapter(reference, seed=seed)
    verdict = screen(adapter, reference, policy)
    left = tuple(m for m in adapter.modules if m.name in verdict.kept)
    if verdict.outcome is not Outcome.REJECTED and left:
        assert screen(Adapter(left, adapter.dtype), reference, policy).outcome is Outcome.CLEAN
