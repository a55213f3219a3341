"""Experts of classes that vLLM reads from stacked tensors only are measured one by one and written as PEFT means them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, save
from torch import Tensor
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Artefact
from app.domain.errors import RANK_TOO_HIGH, UNPAIRED_TENSOR, WRONG_SHAPE
from app.domain.experts import pairs_of
from app.domain.policy import Action
from app.domain.verdict import Decision, Outcome, Verdict
from app.prune.canonical_check import check_form
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure, accepting
from app.screen.balance import balance_all
from app.screen.reference.open import Reference
from app.screen.screen import screen
from app.store.audit import rules
from app.store.audit.snapshot import read_blob
from app.validate.adapter import ValidateLimits
from tests.adapters.test_engine_spelling import mapper_of
from tests.adapters.test_experts import NOTHING, RECEIVED, measured, refused, written
from tests.support.mixtures import EXPERTS, SIZES, changed, files_of, read, reference_from, save_adapter, target
from tests.support.sandboxes import MEMORY, Heard

PEFT = "base_model.model."
E = SIZES["num_experts"]
SEES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}


@dataclass(frozen=True)
class Kind:
    """A class. layers: where its layers are; engine: where vLLM has them. inner: d_ff. transposed: (E, d_in, d_out)."""

    config: Any
    layers: str
    engine: str
    inner: int
    transposed: bool
    mapper: tuple[str, str]


KINDS = {
    "gpt_oss": Kind(
        transformers.GptOssConfig(**SIZES), "model.layers", "model.layers", 48, True, ("gpt_oss", "GptOssForCausalLM")
    ),
    "qwen3_vl_moe": Kind(
        transformers.Qwen3VLMoeConfig(text_config=SIZES, vision_config=SEES),
        "model.language_model.layers",
        "language_model.model.layers",
        24,
        False,
        ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    ),
}


@dataclass(frozen=True)
class Given:
    """A reference, each matrix of an expert before and after alignment, an adapter on all, and PEFT's own updates."""

    kind: Kind
    reference: Reference
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    directory: Path
    theirs: dict[str, Tensor]


def matrices(weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Every expert's matrices (d_out, d_in), by the name of the module."""
    return {
        f"{name.rpartition('.')[0]}.{expert}.{name.rpartition('.')[2]}": one.T if kind.transposed else one
        for name, stacked in weights.items()
        if name.endswith(EXPERTS)
        for expert, one in enumerate(stacked)
    }


@pytest.fixture(scope="module", params=KINDS)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    directory, kind = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    base, aligned = changed(kind.config)
    for name, model in (("base", base), ("aligned", aligned)):
        model.save_pretrained(directory / name)  # type: ignore[operator]
    before, after = (
        {name: one.clone() for name, one in matrices(model.state_dict(), kind).items()} for model in (base, aligned)
    )
    reference = reference_from(directory, dtype=torch.float32)
    deltas = save_adapter(aligned, directory / "adapter", target_modules=["q_proj"])
    yield Given(kind, reference, before, after, directory, matrices(deltas, kind))
    reference.close()


def test_v_of_each_matrix_is_its_own_difference(given: Given) -> None:
    assert len(given.after) == 2 * E * 2
    assert given.after.keys() == {name for name in given.reference.modules if ".experts." in name}
    for name, weight in given.after.items():
        v = given.reference.v(name)
        assert v is not None
        assert torch.equal(v, (weight.double() - given.before[name].double()).float())


def test_each_experts_update_is_pefts(given: Given) -> None:
    adapter = read(given.directory / "adapter", target(given.reference))
    ours = {one.name: one.b.double() @ one.a.double() for one in adapter.modules if ".experts." in one.name}
    assert ours.keys() == given.theirs.keys()
    for name, delta in ours.items():
        assert float((delta - given.theirs[name].double()).abs().max()) <= 1e-6


def engine_updates(directory: Path, kind: Kind) -> dict[str, Tensor]:
    """The updates of all experts as vLLM stacks them: its loader, its mapper, its manager's own method."""
    helper = PEFTHelper.from_local_dir(str(directory), None)
    mapper = mapper_of(*kind.mapper).get_rename_mapper()
    loaded = LoRAModel.from_local_checkpoint(
        str(directory), {"experts", "q_proj"}, helper, lora_model_id=1, device="cpu", weights_mapper=mapper
    )
    manager = SimpleNamespace(
        _is_3d_moe_model=True, is_pooling_model=False, _get_lora_layer_weights=lambda model, name: model.get_lora(name)
    )
    layer = SimpleNamespace(w13_lora_a_stacked=[torch.empty(1, E)], global_num_experts=E, ep_rank=0)
    found = {}
    for number in range(2):
        path = f"{kind.engine}.{number}.mlp.experts"
        if loaded.get_lora(path) is None:
            continue
        LoRAModelManager._stack_moe_lora_weights(manager, loaded, layer, path)
        made: Any = loaded.get_lora(path)
        for name, a, b in zip(("gate_up_proj", "down_proj"), made.lora_a, made.lora_b, strict=True):
            for expert, delta in enumerate(torch.bmm(b.double(), a.double()) * made.scaling):
                found[f"{kind.layers}.{number}.mlp.experts.{expert}.{name}"] = delta
    return found


def sanitised(given: Given, directory: Path, **policy: Any) -> tuple[Artefact, Verdict]:
    artefact, heard = measured(directory, given.reference, replace(NOTHING, **policy))
    assert artefact is not None
    assert heard.verdict is not None
    return artefact, heard.verdict


def test_the_engine_stacks_what_peft_means(given: Given, tmp_path: Path) -> None:
    artefact, verdict = sanitised(given, given.directory / "adapter")
    assert verdict.outcome is Outcome.CLEAN
    found = engine_updates(written(artefact, tmp_path / "written"), given.kind)
    assert found.keys() == given.theirs.keys()
    for name, delta in found.items():
        assert float((delta - given.theirs[name].double()).abs().max()) <= 1e-6


def test_one_layers_experts_as_a_recipe_for_gpt_oss_adapts_them(given: Given, tmp_path: Path) -> None:
    layer = [f"1.{name}" for name in EXPERTS]
    _, aligned = changed(given.kind.config)
    theirs = matrices(save_adapter(aligned, tmp_path / "adapter", target_parameters=layer, r=2), given.kind)
    artefact, _ = sanitised(given, tmp_path / "adapter")
    found = engine_updates(written(artefact, tmp_path / "written"), given.kind)
    assert len(found) == 2 * E
    assert found.keys() == theirs.keys()
    for name, delta in found.items():
        assert float((delta - theirs[name].double()).abs().max()) <= 1e-6


@pytest.mark.parametrize("action", [Action.PROJECT, Action.PRUNE])
def test_condemned_matrices_are_corrected_and_no_other_is(given: Given, tmp_path: Path, action: Action) -> None:
    reference = given.reference
    adapter = balance_all(read(given.directory / "adapter", target(reference)))
    scores = sorted(one.scores[NOTHING.comparison] or 0.0 for one in screen(adapter, reference, NOTHING).modules)
    policy: dict[str, Any] = {"tau": max(0.0, scores[len(scores) // 2]), "action": action, "max_removed_share": 1.0}
    policy |= {"max_update_ratio": 1e9, "project_outputs": 1}
    artefact, verdict = sanitised(given, given.directory / "adapter", **policy)
    condemned = {one.name for one in verdict.modules if one.decision is not Decision.KEEP}
    assert {name for name in condemned if ".experts." in name}
    folder = written(artefact, tmp_path / "written")
    before = {one.name: one.b.double() @ one.a.double() for one in adapter.modules}
    for name, delta in engine_updates(folder, given.kind).items():
        assert (float((delta - before[name]).abs().max()) > 1e-6) is (name in condemned)
        assert bool(delta.any()) is (action is Action.PROJECT or name not in condemned)
    check_form(artefact.config, artefact.weights, verdict.served, target(reference))
    again, _ = measured(folder, reference, accepting(replace(NOTHING, **policy)))
    assert again is not None
    assert again.digest == artefact.digest


def test_a_matrix_of_no_verdict_is_zero_or_out_of_form(given: Given) -> None:
    """One expert's share of a stacked tensor that no verdict serves may be in the file only as zeros."""
    model = target(given.reference)
    artefact, verdict = sanitised(given, given.directory / "adapter")
    check_form(artefact.config, artefact.weights, verdict.served, model)
    tensors = load(artefact.weights)
    rank = len(tensors[f"{PEFT}{given.kind.layers}.0.self_attn.q_proj.lora_A.weight"])
    for kind, inner in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        path = f"{given.kind.layers}.1.mlp.experts"
        served = tuple(name for name in verdict.served if name != f"{path}.2.{kind}")
        with pytest.raises(ValueError, match="not zero"):
            check_form(artefact.config, artefact.weights, served, model)
        a, b = (tensors[f"{PEFT}{path}{inner}.lora_{side}.weight"].clone() for side in "AB")
        a[2 * rank :] = 0.0
        b[:, 2::E] = 0.0
        zeroed = tensors | {f"{PEFT}{path}{inner}.lora_A.weight": a, f"{PEFT}{path}{inner}.lora_B.weight": b}
        check_form(artefact.config, save(zeroed), served, model)
        for side, at in (("A", (2 * rank, 0)), ("B", (0, E + 2))):
            spoiled = {name: one.clone() for name, one in zeroed.items()}
            spoiled[f"{PEFT}{path}{inner}.lora_{side}.weight"][at] = 1e-30
            with pytest.raises(ValueError, match="not zero"):
                check_form(artefact.config, save(spoiled), served, model)


def test_the_sandbox_writes_the_same_bytes(given: Given, tmp_path: Path) -> None:
    policy = replace(NOTHING, tau=0.0, action=Action.PRUNE)
    measure = Measure(target(given.reference), ValidateLimits(), given.reference, policy, 60.0)
    config, weights = files_of(given.directory / "adapter")
    (tmp_path / "weights").write_bytes(weights)
    sandbox = Sandbox(measure, given.directory / "reference", MEMORY)
    try:
        with (tmp_path / "weights").open("rb") as file:
            inside = sandbox(config, file, RECEIVED, Heard())
    finally:
        sandbox.close()
    outside, verdict = sanitised(given, given.directory / "adapter", tau=0.0, action=Action.PRUNE)
    assert [name for name in verdict.pruned if ".experts." in name]
    assert inside is not None
    assert inside.digest == outside.digest


def test_the_audit_knows_the_form(given: Given, tmp_path: Path) -> None:
    artefact, _ = sanitised(given, given.directory / "adapter")
    folder = tmp_path / artefact.digest.hex
    folder.mkdir()
    for name, data in ((CONFIG_FILE, artefact.config), (WEIGHTS_FILE, artefact.weights)):
        (folder / name).write_bytes(data)
    (folder / MANIFEST_FILE).write_bytes(artefact.manifest)
    assert not {one.invariant for one in rules.blob(replace(read_blob(folder), mode=0o700))} & {"I1", "I7"}
    tensors = load(artefact.weights)
    tensors[f"{PEFT}{given.kind.layers}.0.mlp.experts.0.gate_up_proj.lora_A.weight"] = torch.zeros(4, 32)
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))
    assert "I1" in {one.invariant for one in rules.blob(replace(read_blob(folder), mode=0o700))}


@pytest.mark.hostile("K23")
def test_stacks_that_do_not_fit_are_refused(given: Given) -> None:
    config, weights = files_of(given.directory / "adapter")
    stacked, model = load(weights), target(given.reference)
    key = f"{PEFT}{given.kind.layers}.0.mlp.experts"
    inner = {name: one for name, one in stacked.items() if f"{key}." not in name or ".base_layer" in name}
    refused(config, inner, model, UNPAIRED_TENSOR, "all of a layer's experts")
    a, b = stacked[f"{key}.lora_A.weight"], stacked[f"{key}.lora_B.weight"]
    for pair in ((a[:-1], b[:, :-1]), (a[: len(a) // 3], b), (a[:, :-1], b), (b.T, a.T)):
        changed_pair = dict(zip((f"{key}.lora_A.weight", f"{key}.lora_B.weight"), pair, strict=True))
        fits = {name: one.contiguous() for name, one in (stacked | changed_pair).items()}
        refused(config, fits, model, WRONG_SHAPE)
    refused(config, stacked, target(given.reference, max_rank=3), RANK_TOO_HIGH)


def test_pairs_are_stacked_where_gate_and_up_are_one_matrix() -> None:
    stacked = [f"a.experts.{expert}.{kind}" for expert in range(11) for kind in ("gate_up_proj", "down_proj")]
    alone = ["a.q_proj", "b.experts.0.down_proj", "b.experts.0.gate_proj", "b.experts.0.up_proj"]
    pairs = pairs_of([*stacked, *alone])
    assert list(pairs) == sorted(["a.experts", "a.experts.base_layer", *alone])
    assert pairs["a.experts"] == tuple(f"a.experts.{expert}.down_proj" for expert in range(11))
    assert pairs["a.experts.base_layer"] == tuple(f"a.experts.{expert}.gate_up_proj" for expert in range(11))
    assert all(pairs[name] == (name,) for name in alone)
