"""Projecting inputs: what is taken out, what stays, and that the result passes and is changed by nothing more."""

from dataclasses import replace

import pytest
import torch

from app.domain.digest import digest_of
from app.domain.lora import Adapter, LoraModule, Received, ServingDtype, TargetModel
from app.domain.policy import Action, Comparison, Policy
from app.domain.singular_vectors import SingularVectors
from app.domain.verdict import Decision, Outcome, Verdict
from app.prune.canonical import canonicalise
from app.prune.prune import cut
from app.screen.balance import balance_all
from app.screen.reference.open import Reference
from app.screen.screen import screen
from tests.support.references import random_adapter, tiny_reference

K = 4
POLICY = Policy(
    action=Action.PROJECT, tau=0.0, top_k=K, max_removed_share=1.0, max_pruned_share=1.0, max_update_ratio=1e9
)
RECEIVED = Received(digest_of(b"config"), digest_of(b"weights"), 6, 7)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return tiny_reference(tmp_path_factory.mktemp("projecting"))


def leaning(reference: Reference, share: float, dtype: ServingDtype = ServingDtype.BFLOAT16) -> Adapter:
    """Each module reads the inputs alignment acts on: that share (0..1) of each row of A lies on R_k."""
    kind = getattr(torch, dtype.value)
    modules = []
    for module in random_adapter(reference, seed=3).modules:
        r = reference.inputs(module.name, K)
        on = (module.a @ r) @ r.T
        off = module.a - on
        a = share**0.5 * on / on.norm() + (1.0 - share) ** 0.5 * off / off.norm()
        modules.append(LoraModule(module.name, a.to(kind), module.b.to(kind), 1.0))
    return Adapter(tuple(modules), dtype)


def corrected(adapter: Adapter, reference: Reference, policy: Policy = POLICY) -> tuple[Verdict, Adapter]:
    verdict = screen(adapter, reference, policy)
    return verdict, cut(adapter, verdict, lambda name: ends_of(reference, name, policy))


def ends_of(reference: Reference, name: str, policy: Policy = POLICY) -> SingularVectors:
    return reference.singular_vectors(name, policy)


@pytest.mark.parametrize("dtype", list(ServingDtype))
def test_only_what_acts_on_alignments_inputs_is_gone(reference: Reference, dtype: ServingDtype) -> None:
    adapter = leaning(reference, 0.6, dtype)
    verdict, left = corrected(adapter, reference)
    assert verdict.outcome is Outcome.PROJECTED
    assert verdict.projected == tuple(reference.modules)
    for before, after in zip(adapter.modules, left.modules, strict=True):
        vectors = ends_of(reference, before.name)
        r, u = vectors.r.double(), vectors.u.double()
        was, now = (m.b.double() @ m.a.double() for m in (before, after))
        assert (now @ r).norm() < 0.01 * (was @ r).norm()
        assert (u.T @ now).norm() < 0.01 * was.norm()
        rest_in, rest_out = torch.eye(len(r)).double() - r @ r.T, torch.eye(len(u)).double() - u @ u.T
        assert torch.allclose(now, rest_out @ was @ rest_in, atol=0.01 * float(was.abs().max()))
        assert (after.rank, after.a.dtype, after.b.dtype) == (before.rank, before.a.dtype, before.b.dtype)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99, 0.999])
def test_the_result_passes_and_sanitising_it_again_changes_no_byte(reference: Reference, share: float) -> None:
    target = TargetModel("served", reference.modules, ServingDtype.BFLOAT16, 16)
    verdict, left = corrected(leaning(reference, share), reference)
    left = balance_all(left)
    once = canonicalise(left, verdict, RECEIVED, target) if left.modules else None
    if once is None:
        assert verdict.outcome is Outcome.EMPTIED
        return
    again, left_again = corrected(left, reference)
    assert again.outcome is Outcome.CLEAN
    left_again = balance_all(left_again)
    assert canonicalise(left_again, again, RECEIVED, target).digest == once.digest


def test_a_module_of_which_nothing_would_be_left_is_cut_out(reference: Reference) -> None:
    """What rounding leaves of it would point anywhere, and might even score."""
    whole = leaning(reference, 1.0)
    verdict, left = corrected(whole, reference)
    assert verdict.outcome is Outcome.EMPTIED
    assert left.modules == ()
    mixed = Adapter((whole.modules[0], *leaning(reference, 0.5).modules[1:]), whole.dtype)
    verdict, left = corrected(mixed, reference)
    assert verdict.outcome is Outcome.PROJECTED
    assert verdict.pruned == (whole.modules[0].name,)
    assert "1 cut out" in verdict.reason
    assert len(left.modules) == len(whole.modules) - 1


def test_what_scores_below_tau_is_not_touched(reference: Reference) -> None:
    adapter = leaning(reference, 0.001)
    verdict, left = corrected(adapter, reference)
    assert verdict.outcome is Outcome.CLEAN
    assert all(a is b for a, b in zip(adapter.modules, left.modules, strict=True))


def removed_share(adapter: Adapter, reference: Reference) -> float:
    """One minus the share of Σ‖ΔW‖² that both projectors leave, written out."""
    whole = left = 0.0
    for module in adapter.modules:
        vectors, dense = ends_of(reference, module.name), module.b.double() @ module.a.double()
        r, u = vectors.r.double(), vectors.u.double()
        kept = dense - u @ (u.T @ dense)
        kept = kept - (kept @ r) @ r.T
        whole, left = whole + float(dense.square().sum()), left + float(kept.square().sum())
    return 1.0 - left / whole


def test_taking_away_more_than_the_bound_is_refused(reference: Reference) -> None:
    adapter = leaning(reference, 0.5)
    share = removed_share(adapter, reference)
    assert screen(adapter, reference, replace(POLICY, max_removed_share=share + 1e-4)).outcome is Outcome.PROJECTED
    verdict = screen(adapter, reference, replace(POLICY, max_removed_share=share - 1e-4))
    assert verdict.outcome is Outcome.REJECTED
    assert f"{share:.0%} of the update" in verdict.reason


@pytest.mark.parametrize("energy", [0.05, 0.3, 0.5, 0.8, 0.999])
def test_by_energy_the_fewest_inputs_that_hold_that_share_of_v_are_looked_at(
    reference: Reference, energy: float
) -> None:
    """Against all of V's singular values, in double precision; never more than top_k."""
    policy = replace(POLICY, energy=energy, top_k=8)
    verdict, left = corrected(leaning(reference, 0.6), reference, policy)
    for module, after in zip(verdict.modules, left.modules, strict=True):
        v = reference.v(module.name)
        assert v is not None
        held = torch.linalg.svdvals(v.double()).square()
        fewest = next(k for k in range(1, len(held) + 1) if held[:k].sum() >= energy * held.sum())
        assert module.inputs == min(fewest, 8)
        r = reference.inputs(module.name, module.inputs).double()
        assert (after.a.double() @ r).norm() < 0.01 * after.a.double().norm()


def test_modules_differ_in_how_many_inputs_hold_half_of_v_and_all_energy_means_top_k(reference: Reference) -> None:
    adapter = leaning(reference, 0.6)
    half = screen(adapter, reference, replace(POLICY, energy=0.5, top_k=8))
    assert len({module.inputs for module in half.modules}) > 1
    whole = screen(adapter, reference, replace(POLICY, energy=1.0))
    assert {module.inputs for module in whole.modules} == {K}
    for energy in (0.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="energy"):
            replace(POLICY, energy=energy)


def test_without_ends_nothing_is_projected_silently(reference: Reference) -> None:
    adapter = leaning(reference, 0.6)
    verdict = screen(adapter, reference, POLICY)
    with pytest.raises(ValueError, match="ends"):
        cut(adapter, verdict)
    assert {m.decision for m in verdict.modules} == {Decision.PROJECT}


def test_projecting_goes_with_the_comparison_that_measures_inputs() -> None:
    with pytest.raises(ValueError, match="comparison input"):
        Policy(action=Action.PROJECT, comparison=Comparison.ALIGNMENT)
    with pytest.raises(ValueError, match="tau"):
        Policy(action=Action.PROJECT, tau=-0.1)
    with pytest.raises(ValueError, match="max_removed_share"):
        Policy(max_removed_share=1.5)
