"""Several adapters in one reading of V."""

from collections.abc import Iterator

import pytest
import torch

from app.domain.errors import UNKNOWN_MODULE, WRONG_SHAPE, Refused
from app.domain.lora import Adapter, LoraModule, ServingDtype
from app.domain.policy import Policy
from app.domain.verdict import Outcome, Verdict
from app.screen import screen as screening
from app.screen.reference.open import Reference
from app.screen.screen import screen, screen_many
from tests.support.references import random_adapter, tiny_reference

POLICY = Policy(tau=3.0, top_k=4, max_pruned_share=1.0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    opened = tiny_reference(tmp_path_factory.mktemp("reference"))
    yield opened
    opened.close()


@pytest.mark.parametrize("columns", [1, 8, 64])
def test_together_is_the_same_as_one_by_one(
    reference: Reference, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "COLUMNS", columns)
    adapters = [random_adapter(reference, rank=rank, seed=rank) for rank in (1, 3, 8, 5)]
    adapters[1] = Adapter(adapters[1].modules[:2], adapters[1].dtype)
    assert screen_many(adapters, reference, POLICY) == [screen(a, reference, POLICY) for a in adapters]


def test_the_same_adapter_twice_has_the_same_verdict_twice(reference: Reference) -> None:
    adapter = random_adapter(reference)
    first, second = screen_many([adapter, adapter], reference, POLICY)
    assert first == second == screen(adapter, reference, POLICY)


def test_one_that_does_not_fit_harms_no_other(reference: Reference) -> None:
    good = random_adapter(reference)
    stranger = Adapter((LoraModule("x.q_proj", torch.ones(2, 64), torch.ones(64, 2), 1.0),), ServingDtype.FLOAT32)
    first = good.modules[0]
    wrong = Adapter((LoraModule(first.name, first.a[:, 1:], first.b, 1.0),), ServingDtype.FLOAT32)
    answers = screen_many([stranger, good, wrong], reference, POLICY)
    assert isinstance(answers[0], Refused)
    assert answers[0].code is UNKNOWN_MODULE
    assert answers[1] == screen(good, reference, POLICY)
    assert isinstance(answers[2], Refused)
    assert answers[2].code is WRONG_SHAPE


def test_nan_and_zero_beside_an_honest_one(reference: Reference) -> None:
    good, bad, zero = (random_adapter(reference, seed=seed) for seed in range(3))
    bad.modules[0].a[0, 0] = float("nan")
    for module in zero.modules:
        module.b.zero_()
    answers = screen_many([bad, good, zero], reference, POLICY)
    assert all(isinstance(answer, Verdict) for answer in answers)
    assert [answer.outcome for answer in answers if isinstance(answer, Verdict)] == [
        Outcome.REJECTED,
        Outcome.CLEAN,
        Outcome.CLEAN,
    ]
    assert answers[1] == screen(good, reference, POLICY)


def test_no_adapters_no_verdicts(reference: Reference) -> None:
    assert screen_many([], reference, POLICY) == []
