"""What pruning leaves, and the one canonical byte form."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load, save

from app.domain.artefact import content_digest
from app.domain.digest import digest_of
from app.domain.lora import Adapter, LoraModule, Received, ServingDtype, Shape, TargetModel
from app.domain.policy import Policy
from app.domain.verdict import METRIC_VERSION, Decision, ModuleVerdict, Outcome, Reason, Verdict
from app.prune.canonical import canonicalise
from app.prune.prune import cut
from app.prune.zero_adapter import zero_adapter
from app.screen.balance import balance_all

TARGET = TargetModel(
    "served", {f"model.layers.{i}.self_attn.q_proj": Shape(6, 4) for i in range(3)}, ServingDtype.FLOAT32, 8
)
RECEIVED = Received(digest_of(b"config"), digest_of(b"weights"), 6, 7)


def an_adapter(ranks: tuple[int, ...] = (2, 2, 2)) -> Adapter:
    made: list[LoraModule] = []
    for name, rank in zip(sorted(TARGET.modules), ranks, strict=True):
        generator = torch.Generator().manual_seed(len(made))
        a, b = torch.randn(rank, 4, generator=generator), torch.randn(6, rank, generator=generator)
        made.append(LoraModule(name, a, b, 2.0))
    return balance_all(Adapter(tuple(made), ServingDtype.FLOAT32))


def a_verdict(adapter: Adapter, pruned: tuple[int, ...] = (), outcome: Outcome | None = None) -> Verdict:
    decisions = [Decision.PRUNE if i in pruned else Decision.KEEP for i in range(len(adapter.modules))]
    modules = tuple(
        ModuleVerdict(
            name=module.name,
            rank=module.rank,
            scaling=module.scaling,
            scores={},
            cosine=None,
            update_norm=1.0,
            v_norm=1.0,
            lambda_max=1.0,
            decision=decision,
            reason=Reason.ABOVE_TAU if decision is Decision.PRUNE else Reason.BELOW_TAU,
        )
        for module, decision in zip(adapter.modules, decisions, strict=True)
    )
    found = outcome or (Outcome.PRUNED if pruned else Outcome.CLEAN)
    return Verdict(digest_of(b"v"), METRIC_VERSION, Policy(), digest_of(b"r"), found, "because", modules)


def test_condemned_modules_are_gone_and_the_rest_is_untouched() -> None:
    adapter = an_adapter()
    left = cut(adapter, a_verdict(adapter, (1,)))
    assert [m.name for m in left.modules] == [adapter.modules[0].name, adapter.modules[2].name]
    assert left.modules[0] is adapter.modules[0]


def test_a_rejected_adapter_or_a_foreign_verdict_is_never_cut() -> None:
    adapter = an_adapter()
    with pytest.raises(ValueError, match="refused"):
        cut(adapter, a_verdict(adapter, outcome=Outcome.REJECTED))
    with pytest.raises(ValueError, match="another adapter"):
        cut(Adapter(adapter.modules[:2], adapter.dtype), a_verdict(adapter))


def test_only_what_a_verdict_keeps_becomes_bytes() -> None:
    adapter = an_adapter()
    verdict = a_verdict(adapter, (1,))
    with pytest.raises(ValueError, match="no verdict keeps"):
        canonicalise(adapter, verdict, RECEIVED, TARGET)  # not cut
    with pytest.raises(ValueError, match="no verdict keeps"):
        canonicalise(cut(adapter, verdict), replace(verdict, outcome=Outcome.REJECTED), RECEIVED, TARGET)
    with pytest.raises(ValueError, match="emptied"):
        canonicalise(Adapter((), adapter.dtype), verdict, RECEIVED, TARGET)


def test_only_balanced_factors_become_bytes() -> None:
    adapter = an_adapter()
    with pytest.raises(ValueError, match="balanced"):
        canonicalise(replace(adapter, balanced=False), a_verdict(adapter), RECEIVED, TARGET)
    assert not cut(adapter, a_verdict(adapter)).balanced  # what was cut is balanced anew


def test_canonical_bytes_hold_exactly_the_kept_modules_with_scaling_one() -> None:
    adapter = an_adapter((2, 1, 2))
    verdict = a_verdict(adapter, (2,))
    artefact = canonicalise(balance_all(cut(adapter, verdict)), verdict, RECEIVED, TARGET)
    tensors = load(artefact.weights)
    config = json.loads(artefact.config)
    names = [m.name for m in adapter.modules[:2]]
    assert config["target_modules"] == names
    assert config["lora_alpha"] == config["r"] == 2
    assert sorted(tensors) == sorted(f"base_model.model.{n}.lora_{x}.weight" for n in names for x in "AB")
    for module in adapter.modules[:2]:  # padding the smaller one changes no ΔW
        key = f"base_model.model.{module.name}"
        assert torch.equal(tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"], module.b @ module.a)


@pytest.mark.parametrize("dtype", list(ServingDtype))
@pytest.mark.parametrize("ranks", [(2, 2, 2), (3, 1, 2)])
def test_the_file_is_the_one_that_safetensors_writes(dtype: ServingDtype, ranks: tuple[int, int, int]) -> None:
    kind = getattr(torch, dtype.value)
    cast = [replace(m, a=m.a.to(kind), b=m.b.to(kind)) for m in an_adapter(ranks).modules]
    adapter = balance_all(Adapter(tuple(cast), dtype))
    artefact = canonicalise(adapter, a_verdict(adapter), RECEIVED, replace(TARGET, dtype=dtype))
    tensors = load(artefact.weights)
    assert {str(x.dtype) for x in tensors.values()} == {f"torch.{dtype.value}"}
    assert artefact.weights == save(tensors)


def test_equal_adapters_give_equal_bytes_and_the_digest_covers_what_the_engine_reads() -> None:
    first, second = an_adapter(), an_adapter()
    other = Received(digest_of(b"x"), digest_of(b"y"), 1, 1)
    one = canonicalise(first, a_verdict(first), RECEIVED, TARGET)
    two = canonicalise(second, a_verdict(second), other, TARGET)
    assert (one.config, one.weights, one.digest) == (two.config, two.weights, two.digest)
    assert one.digest == content_digest(one.config, one.weights)
    assert json.loads(one.manifest)["digest"] == str(one.digest)


def test_peft_reads_the_canonical_config(tmp_path_factory: pytest.TempPathFactory) -> None:
    adapter = an_adapter()
    artefact = canonicalise(adapter, a_verdict(adapter), RECEIVED, TARGET)
    directory = tmp_path_factory.mktemp("artefact")
    (directory / "adapter_config.json").write_bytes(artefact.config)
    config = PeftConfig.from_pretrained(str(directory))  # noqa: TID251 - our own bytes, in a test
    assert config.r == config.lora_alpha == 2
    assert set(config.target_modules) == {m.name for m in adapter.modules}


def test_the_noop_adapter_changes_nothing_and_fits_the_target() -> None:
    zero = zero_adapter(TARGET)
    (module,) = zero.modules
    assert module.name in TARGET.modules
    assert torch.count_nonzero(module.b @ module.a) == 0
