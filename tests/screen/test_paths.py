"""Every way to a verdict or to bytes goes through the balanced form, or measures what the engine reads as it lies."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, Artefact
from app.domain.errors import BAD_NUMBERS, Refused
from app.domain.lora import Adapter, LoraModule, ServingDtype, TargetModel
from app.domain.policy import Policy
from app.domain.verdict import Outcome
from app.gateway.directory_screening import screen_directory
from app.gateway.policy_recheck import policy_objection
from app.gateway.zero_adapter import store_zero_adapter
from app.prune.canonical import config_bytes
from app.screen.balance import balanced
from app.screen.reference.open import Reference, open_reference
from tests.support.adapters import key
from tests.support.references import make_reference, random_adapter

Q = "model.layers.0.self_attn.q_proj"
POLICY = Policy(tau=100.0, top_k=4, max_pruned_share=1.0, max_update_ratio=1e9)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reference(tmp_path_factory.mktemp("paths"))


@pytest.fixture(scope="module")
def reference(where: Path) -> Iterator[Reference]:
    opened = open_reference(where, None)
    yield opened
    opened.close()


def honest(reference: Reference) -> tuple[Tensor, Tensor]:
    """(b, a) as PEFT leaves them: not balanced, and nothing wrong with them."""
    (m,) = random_adapter(reference, names=[Q], dtype=ServingDtype.BFLOAT16).modules
    return m.b * 4.0, m.a


def hiding(reference: Reference) -> tuple[Tensor, Tensor]:
    """(b, a) of which the engine reads half as zero."""
    b, a = (x.double() for x in honest(reference))
    b = b * 2.0**-10  # so that 2¹³³ times it is still in range
    signs = torch.randint(0, 2, a.shape, generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    groups = ((b, signs, 113), (-b, signs, 133), (b * 2.0**-6, a, 113))
    columns, rows = [x * 2.0**k for x, _, k in groups], [y * 2.0**-k for _, y, k in groups]
    return torch.cat(columns, 1).bfloat16(), torch.cat(rows).bfloat16()


def folder(at: Path, reference: Reference, factors: tuple[Tensor, Tensor]) -> Path:
    """An adapter's two files, in the form that an older release wrote."""
    at.mkdir()
    b, a = (x.contiguous() for x in factors)
    target = TargetModel("served", reference.modules, ServingDtype.BFLOAT16, 64)
    (at / CONFIG_FILE).write_bytes(config_bytes((Q,), len(a), target))
    (at / WEIGHTS_FILE).write_bytes(save({key(Q, "A"): a, key(Q, "B"): b}))
    return at


def objection(at: Path, reference: Reference) -> str | None:
    target = TargetModel("served", reference.modules, ServingDtype.BFLOAT16, 64)
    blobs = SimpleNamespace(path=lambda _: at, verify=lambda _: None)
    rules = SimpleNamespace(policy=POLICY)
    components = SimpleNamespace(
        blobs=blobs, target=target, reference=reference, rules_of=lambda _: rules, screen_seconds=60.0
    )
    return policy_objection(cast("Any", components), cast("Any", SimpleNamespace(artefact="any")))


def test_what_an_older_release_stored_is_measured_as_the_engine_reads_it(reference: Reference, tmp_path: Path) -> None:
    assert objection(folder(tmp_path / "honest", reference, honest(reference)), reference) is None
    said = objection(folder(tmp_path / "hiding", reference, hiding(reference)), reference)
    assert said is not None
    assert said.startswith(BAD_NUMBERS.name)


def test_a_directory_is_screened_in_balanced_form(where: Path, reference: Reference, tmp_path: Path) -> None:
    at = folder(tmp_path / "honest", reference, honest(reference))
    assert screen_directory(at, where, POLICY, ServingDtype.BFLOAT16).outcome is Outcome.CLEAN
    b, a = honest(reference)
    cancelling = folder(tmp_path / "cancelling", reference, (torch.cat([b, -b], 1), torch.cat([a, a])))
    with pytest.raises(Refused) as caught:
        screen_directory(cancelling, where, POLICY, ServingDtype.BFLOAT16)
    assert caught.value.code is BAD_NUMBERS
    hidden = screen_directory(
        folder(tmp_path / "hiding", reference, hiding(reference)), where, POLICY, ServingDtype.BFLOAT16
    )
    whole = screen_directory(at, where, POLICY, ServingDtype.BFLOAT16)
    assert (hidden.modules[0].update_norm or 0.0) < 0.1 * (whole.modules[0].update_norm or 0.0)


def test_the_zero_adapter_goes_the_same_way(reference: Reference) -> None:
    stored: list[Artefact] = []
    target = TargetModel("served", reference.modules, ServingDtype.BFLOAT16, 64)
    store = SimpleNamespace(peers=None, blobs=SimpleNamespace(put=stored.append))
    made = store_zero_adapter(target, reference, POLICY, cast("Any", store))
    assert stored == [made]
    tensors = load(made.weights)
    a, b = sorted(tensors.items())
    assert balanced(LoraModule("m", a[1], b[1], 1.0))
    assert not Adapter((), ServingDtype.BFLOAT16).balanced
