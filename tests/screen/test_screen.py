from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.domain.errors import (
    BAD_NUMBERS,
    BAD_REFERENCE,
    SCREENING_TIMEOUT,
    UNKNOWN_MODULE,
    WRONG_SHAPE,
    GatewayError,
    Refused,
    Unavailable,
)
from app.domain.lora import Adapter, LoraModule, ServingDtype
from app.domain.policy import Comparison, Policy, Unscorable
from app.domain.verdict import Decision, Outcome, Reason, Verdict
from app.screen.reference.build import BuildOptions
from app.screen.reference.open import Reference
from app.screen.screen import screen
from tests.screen.oracle import Dense
from tests.support.references import random_adapter, tiny_reference

Q = "model.layers.0.self_attn.q_proj"
POLICY = Policy(tau=3.0, top_k=4, max_pruned_share=1.0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    opened = tiny_reference(tmp_path_factory.mktemp("reference"))
    yield opened
    opened.close()


def with_module(adapter: Adapter, name: str, a: Tensor, b: Tensor) -> Adapter:
    modules = (LoraModule(name, a, b, 1.0) if m.name == name else m for m in adapter.modules)
    return Adapter(tuple(modules), adapter.dtype)


def on_inputs(reference: Reference, name: str, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """(a, b) of an update made of V's own top triples."""
    triples = reference.triples(name)
    assert triples is not None
    return triples.r[:, :4].T.contiguous(), sign * triples.u[:, :4] * triples.s[:4]


def of(verdict: Verdict, name: str) -> object:
    return next(m for m in verdict.modules if m.name == name)


def test_a_random_adapter_is_clean_and_fully_measured(reference: Reference) -> None:
    verdict = screen(random_adapter(reference), reference, POLICY)
    assert verdict.outcome is Outcome.CLEAN
    assert [m.name for m in verdict.modules] == sorted(reference.modules)
    for m in verdict.modules:
        assert set(m.scores) == set(Comparison)
        assert all(score is not None and abs(score) < 5.0 for score in m.scores.values())
        assert m.cosine is not None
        assert m.cosine > 0.0
        assert m.input_share is not None
        assert 0.0 < m.input_share < 1.0
        assert m.v_norm == reference.info(m.name).v_norm


def test_measurements_agree_with_the_dense_oracle(reference: Reference) -> None:
    adapter = random_adapter(reference, rank=3, dtype=ServingDtype.BFLOAT16)
    verdict = screen(adapter, reference, POLICY)
    for lora, m in zip(adapter.modules, verdict.modules, strict=True):
        delta, v = lora.b.double() @ lora.a.double(), reference.v(lora.name)
        assert v is not None
        dense = Dense(v.double(), POLICY.top_k)
        assert m.update_norm == pytest.approx(float(delta.norm()), rel=1e-9)
        assert m.v_norm == pytest.approx(float(dense.v.norm()), rel=1e-9)
        lambda_max = float(torch.linalg.eigvalsh(dense.v @ dense.v.T / dense.v.norm()).max())
        assert m.lambda_max == pytest.approx(lambda_max, rel=1e-9)
        assert m.cosine == pytest.approx(dense.cosine(delta), rel=1e-6)
        share = float((dense.distance(delta, Comparison.INPUT) / delta.norm()) ** 2)
        assert m.input_share == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("comparison", [Comparison.INPUT, Comparison.ALIGNMENT])
def test_a_planted_module_is_cut_out_and_the_rest_passes(reference: Reference, comparison: Comparison) -> None:
    policy = replace(POLICY, comparison=comparison)
    adapter = with_module(random_adapter(reference), Q, *on_inputs(reference, Q, sign=-1.0))
    verdict = screen(adapter, reference, policy)
    assert verdict.outcome is Outcome.PRUNED
    assert verdict.pruned == (Q,)
    left = Adapter(tuple(m for m in adapter.modules if m.name in verdict.kept), adapter.dtype)
    again = screen(left, reference, policy)
    assert again.outcome is Outcome.CLEAN
    before = {m.name: m.scores for m in verdict.modules}
    assert all(before[m.name] == m.scores for m in again.modules)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["a", "b"])
@pytest.mark.parametrize("comparison", list(Comparison))
@pytest.mark.ruling("G03")
def test_nan_and_infinity_never_pass(reference: Reference, bad: float, factor: str, comparison: Comparison) -> None:
    adapter = random_adapter(reference)
    tensor = getattr(adapter.modules[0], factor)
    tensor[0, 0] = bad
    verdict = screen(adapter, reference, replace(POLICY, comparison=comparison, tau=1e300))
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.modules[0].reason is Reason.NOT_FINITE
    assert verdict.modules[0].update_norm is None


@pytest.mark.ruling("G05")
def test_a_zero_module_passes_without_scores(reference: Reference) -> None:
    m = random_adapter(reference).modules[2]
    verdict = screen(with_module(random_adapter(reference), m.name, m.a, m.b * 0), reference, POLICY)
    zero = verdict.modules[2]
    assert (zero.decision, zero.reason) == (Decision.KEEP, Reason.ZERO_UPDATE)
    assert set(zero.scores.values()) == {None}
    assert verdict.outcome is Outcome.CLEAN


def test_factors_that_cancel_are_refused_whatever_the_policy(reference: Reference) -> None:
    m = random_adapter(reference).modules[0]
    a, b = torch.cat([m.a, -m.a], 0), torch.cat([m.b, m.b], 1)
    for policy in (POLICY, replace(POLICY, unscorable=Unscorable.KEEP)):
        with pytest.raises(Refused, match="cancel") as caught:
            screen(with_module(random_adapter(reference), m.name, a, b), reference, policy)
        assert (caught.value.code, caught.value.param) == (BAD_NUMBERS, m.name)


def test_an_update_far_larger_than_alignment_is_refused(reference: Reference) -> None:
    m = random_adapter(reference).modules[0]
    verdict = screen(with_module(random_adapter(reference), m.name, m.a, m.b * 1e4), reference, POLICY)
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.modules[0].reason is Reason.NORM_TOO_LARGE


@pytest.mark.hostile("G11", "K14")
def test_a_module_without_a_reference_is_refused_by_name(reference: Reference) -> None:
    stranger = LoraModule("model.layers.9.self_attn.q_proj", torch.ones(2, 64), torch.ones(64, 2), 1.0)
    with pytest.raises(Refused, match=r"layers\.9") as caught:
        screen(Adapter((stranger,), ServingDtype.FLOAT32), reference, POLICY)
    assert caught.value.code is UNKNOWN_MODULE


@pytest.mark.parametrize(("a", "b"), [((2, 63), (64, 2)), ((2, 64), (63, 2)), ((2, 64), (64, 3))])
def test_other_shapes_are_refused(reference: Reference, a: tuple[int, int], b: tuple[int, int]) -> None:
    with pytest.raises(Refused, match=Q) as caught:
        screen(Adapter((LoraModule(Q, torch.ones(a), torch.ones(b), 1.0),), ServingDtype.FLOAT32), reference, POLICY)
    assert caught.value.code is WRONG_SHAPE


def test_a_module_whose_rank_equals_its_width_is_screened_as_any_other(reference: Reference) -> None:
    """The released code tells A from B by shape and skips such a module."""
    name = "model.layers.0.self_attn.k_proj"  # 32 × 64
    a, b = on_inputs(reference, name)
    wide_a = torch.cat([a, torch.zeros(28, 64)], 0)
    wide_b = torch.cat([b, torch.zeros(32, 28)], 1)
    verdict = screen(with_module(random_adapter(reference), name, wide_a, wide_b), reference, POLICY)
    assert verdict.pruned == (name,)


def test_an_adapter_without_modules_is_a_programmers_error(reference: Reference) -> None:
    with pytest.raises(ValueError, match="without modules"):
        screen(Adapter((), ServingDtype.FLOAT32), reference, POLICY)


@pytest.mark.parametrize("workers", [1, 2, 5, None])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_to_the_bit_on_any_number_of_threads(reference: Reference, threads: int, workers: int | None) -> None:
    adapter = with_module(random_adapter(reference, rank=16), Q, *on_inputs(reference, Q))
    expected = screen(adapter, reference, POLICY, workers=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert screen(adapter, reference, POLICY, workers=workers) == expected
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_screenings_beside_each_other_do_not_meet(reference: Reference) -> None:
    adapters = [random_adapter(reference, seed=i) for i in range(6)]
    alone = [screen(a, reference, POLICY, workers=1) for a in adapters]
    before = torch.get_num_threads()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda a: screen(a, reference, POLICY, workers=2), adapters)) == alone
    assert torch.get_num_threads() == before


def test_the_id_stands_for_bytes_policy_and_reference(reference: Reference, tmp_path: Path) -> None:
    adapter = random_adapter(reference)
    same = screen(adapter, reference, POLICY).id
    assert screen(random_adapter(reference), reference, POLICY).id == same
    assert screen(random_adapter(reference, seed=1), reference, POLICY).id != same
    assert screen(adapter, reference, replace(POLICY, tau=3.1)).id != same
    other = tiny_reference(tmp_path, options=BuildOptions(top_k=9))
    assert screen(adapter, other, POLICY).id != same
    other.close()


@pytest.mark.ruling("G01")
def test_factors_of_the_same_update_score_the_same(reference: Reference) -> None:
    adapter = random_adapter(reference)
    m = adapter.modules[0]
    gauge = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3 * torch.eye(4)
    moved = with_module(adapter, m.name, torch.linalg.solve(gauge, m.a.double()), m.b.double() @ gauge)
    one, two = (screen(x, reference, POLICY).modules[0] for x in (adapter, moved))
    for comparison in Comparison:
        assert one.scores[comparison] == pytest.approx(two.scores[comparison], abs=1e-4)


def test_a_compact_reference_scores_by_input_alone(reference: Reference, tmp_path: Path) -> None:
    compact = tiny_reference(tmp_path, options=BuildOptions(top_k=8, compact=True))
    adapter = random_adapter(reference)
    for whole, m in zip(
        screen(adapter, reference, POLICY).modules, screen(adapter, compact, POLICY).modules, strict=True
    ):
        assert m.scores[Comparison.INPUT] == whole.scores[Comparison.INPUT]
        assert m.scores[Comparison.ALIGNMENT] is None
        assert m.scores[Comparison.PROJECTION] is None
        assert m.cosine is None
        assert m.input_share == whole.input_share
    with pytest.raises(GatewayError, match="compact") as caught:
        screen(adapter, compact, replace(POLICY, comparison=Comparison.ALIGNMENT))
    assert caught.value.code is BAD_REFERENCE
    compact.close()


def test_more_singular_vectors_than_kept_are_refused(reference: Reference) -> None:
    with pytest.raises(Unavailable, match="keeps 8"):
        screen(random_adapter(reference), reference, replace(POLICY, top_k=9))


def test_a_module_that_alignment_left_alone_cannot_be_scored(tmp_path: Path) -> None:
    from app.screen.reference.build import build_reference
    from app.screen.reference.open import open_reference
    from tests.support.references import aligned_from, weights, write_checkpoint

    base = weights(0, layers=1)
    aligned = aligned_from(base) | {f"{Q}.weight": base[f"{Q}.weight"]}
    one, two = write_checkpoint(tmp_path / "a", base), write_checkpoint(tmp_path / "b", aligned)
    build_reference(one, two, tmp_path / "r", BuildOptions(top_k=8))
    opened = open_reference(tmp_path / "r", None)
    adapter = random_adapter(opened)
    assert screen(adapter, opened, POLICY).outcome is Outcome.REJECTED
    kept = screen(adapter, opened, replace(POLICY, unscorable=Unscorable.KEEP))
    assert kept.outcome is Outcome.CLEAN
    assert [m.reason for m in kept.modules if m.name == Q] == [Reason.UNSCORABLE]
    opened.close()


def thinly(reference: Reference, share: float) -> Adapter:
    """Random updates of rank 1 with `share` of their energy on V's top inputs, in every module."""
    modules = []
    g = torch.Generator().manual_seed(0)
    for name, shape in reference.modules.items():
        triples = reference.triples(name)
        assert triples is not None
        away = torch.randn(1, shape.d_in, generator=g)
        away -= (away @ triples.r[:, :4]) @ triples.r[:, :4].T
        there = torch.randn(1, 4, generator=g) @ triples.r[:, :4].T
        a = (1 - share) ** 0.5 * away / away.norm() + share**0.5 * there / there.norm()
        modules.append(LoraModule(name, a, 0.05 * torch.randn(shape.d_out, 1, generator=g), 1.0))
    return Adapter(tuple(modules), ServingDtype.FLOAT32)


@pytest.mark.ruling("G06", "G07")
def test_harm_spread_thinly_over_every_module_is_seen_by_the_budgets(reference: Reference) -> None:
    """G06, G07: each module under its τ, all of them together far from random."""
    adapter = thinly(reference, 0.2)
    plain = screen(adapter, reference, POLICY)
    scores = [m.scores[Comparison.INPUT] for m in plain.modules]
    assert plain.outcome is Outcome.CLEAN
    assert all(score is not None and 1.0 < score <= POLICY.tau for score in scores)
    for policy in (replace(POLICY, max_adapter_score=4.0), replace(POLICY, max_block_score=3.0)):
        refused = screen(adapter, reference, policy)
        assert refused.outcome is Outcome.REJECTED
        assert "above the budget" in refused.reason
        assert Reason.OVER_BUDGET in {m.reason for m in refused.modules}
        assert refused.id != plain.id
        assert screen(random_adapter(reference), reference, policy).outcome is Outcome.CLEAN


@pytest.mark.parametrize("workers", [1, 2])
def test_past_the_deadline_nothing_is_screened(reference: Reference, workers: int) -> None:
    with pytest.raises(Refused, match="longer than 0 s") as caught:
        screen(random_adapter(reference), reference, POLICY, workers=workers, deadline_s=0.0)
    assert caught.value.code is SCREENING_TIMEOUT
    assert screen(random_adapter(reference), reference, POLICY, workers=workers, deadline_s=60.0).modules


def test_a_deadline_that_is_no_number_is_past(reference: Reference) -> None:
    with pytest.raises(Refused):
        screen(random_adapter(reference), reference, POLICY, deadline_s=float("nan"))


def test_memory_that_runs_out_passes_nothing(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("app.screen.screen.against_inputs", exhausted)
    with pytest.raises(MemoryError):
        screen(random_adapter(reference), reference, POLICY)


@pytest.mark.parametrize("comparison", list(Comparison))
def test_what_decides_does_not_depend_on_what_else_is_measured(reference: Reference, comparison: Comparison) -> None:
    policy = replace(POLICY, comparison=comparison, tau=0.0)
    whole, deciding = (screen(random_adapter(reference), reference, policy, complete=c) for c in (True, False))
    assert set(whole.measured) == set(Comparison)
    assert (deciding.id, deciding.outcome, deciding.reason) == (whole.id, whole.outcome, whole.reason)
    for one, other in zip(deciding.modules, whole.modules, strict=True):
        assert one.scores[comparison] == other.scores[comparison]
        unmeasured = set(Comparison) - set(deciding.measured)
        assert all(one.scores[name] is None and other.scores[name] is not None for name in unmeasured)
    assert deciding.measured == ((Comparison.INPUT,) if comparison is Comparison.INPUT else tuple(Comparison))


def test_measuring_only_inputs_reads_no_v(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "v", lambda *_: pytest.fail("V was read"))
    assert screen(random_adapter(reference), reference, POLICY, complete=False).modules
