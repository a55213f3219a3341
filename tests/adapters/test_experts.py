"""Adapters on experts, stacked or by expert, are read with PEFT's own update and written as vLLM's loader takes them."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import PackedLoRALayerWeights
from vllm.lora.peft_helper import PEFTHelper

from app.domain.artefact import Artefact
from app.domain.digest import digest_of
from app.domain.errors import (
    BAD_TENSOR_NAME,
    RANK_TOO_HIGH,
    UNKNOWN_MODULE,
    UNPAIRED_TENSOR,
    UNSUPPORTED_CONFIG,
    WRONG_SHAPE,
    Code,
    Refused,
)
from app.domain.lora import Adapter, Received, Shape, TargetModel
from app.domain.policy import Action, Policy, Unscorable
from app.domain.spellings import is_router
from app.domain.verdict import Decision, Outcome
from app.prune.canonical import canonicalise
from app.prune.canonical_check import check_form
from app.prune.prune import cut
from app.prune.zero_adapter import zero_adapter
from app.sandbox.sanitise import Measure, accepting, sanitise
from app.screen.balance import balance_all
from app.screen.reference.open import Reference
from app.screen.screen import screen
from app.validate.adapter import ValidateLimits, validate
from app.validate.experts import Stacks
from tests.adapters.test_engine_spelling import mapper_of
from tests.support.mixtures import EXPERTS, MIXTURES, files_of, read, reference_of, save_adapter, split, target
from tests.support.sandboxes import Heard

PEFT = "base_model.model."
SERVED = ("mixtral", "qwen2_moe", "qwen3_moe")
VLLM: dict[str, tuple[str, str]] = {
    "mixtral": ("mixtral", "MixtralModel"),
    "qwen2_moe": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeModel"),
}
"""Module and class of vLLM with the mapper of names."""

NOTHING = Policy(tau=1e6, top_k=2, max_pruned_share=1.0, unscorable=Unscorable.REJECT)
RECEIVED = Received(digest_of(b"config"), digest_of(b"weights"), 6, 7)

VARIANTS: dict[str, dict[str, Any]] = {
    "both parameters": {},
    "rsLoRA": {"use_rslora": True},
    "attention besides": {"target_modules": ["q_proj", "o_proj"]},
    "one layer": {"target_parameters": [f"layers.1.{one}" for one in EXPERTS]},
    "ranks and alphas by parameter": {
        "rank_pattern": {".*\\.gate_up_proj": 6},
        "alpha_pattern": {".*\\.gate_up_proj": 9, "layers.1.mlp.experts.down_proj": 2},
    },
}


@pytest.fixture(scope="module", params=SERVED)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Reference, Path]:
    """Name, reference, and an adapter on all experts."""
    directory = tmp_path_factory.mktemp(request.param)
    reference, model = reference_of(request.param, directory)
    save_adapter(model, directory / "adapter")
    return request.param, reference, directory / "adapter"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SERVED)
def test_stacked_experts_are_read_as_peft_means_them(tmp_path: Path, name: str, variant: str) -> None:
    reference, model = reference_of(name, tmp_path)
    theirs = split(save_adapter(model, tmp_path / "adapter", **VARIANTS[variant]), name)
    adapter = read(tmp_path / "adapter", target(reference))
    ours = {one.name: one.b.double() @ one.a.double() for one in adapter.modules if ".experts." in one.name}
    assert ours.keys() == theirs.keys()
    assert len(ours) in (9, 18)
    for module, delta in ours.items():
        assert float((delta - theirs[module].double()).abs().max()) <= 1e-6
    assert [one.name for one in adapter.modules] == sorted(one.name for one in adapter.modules)
    reference.close()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])  # of Qwen2-MoE PEFT adapts the shared expert alone
def test_what_peft_makes_of_the_old_names_on_todays_classes_is_read_as_it_means_it(tmp_path: Path, name: str) -> None:
    """PEFT turns target_modules w1, w2, w3 into parameters, doubles gate_up_proj's rank, and says so in its patterns."""
    reference, model = reference_of(name, tmp_path)
    settings = {"target_modules": ["q_proj", *MIXTURES[name][2]], "target_parameters": None}
    theirs = split(save_adapter(model, tmp_path / "adapter", **settings), name)
    adapter = read(tmp_path / "adapter", target(reference))
    ours = {one.name: one for one in adapter.modules if ".experts." in one.name}
    assert ours.keys() == theirs.keys()
    assert {one.rank for one in ours.values()} == {4, 8}
    for module, one in ours.items():
        assert float((one.b.double() @ one.a.double() - theirs[module].double()).abs().max()) <= 1e-6
    reference.close()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_all_linear_of_a_mixture_is_read_router_included(tmp_path: Path, name: str) -> None:
    """PEFT adapts the router as a parameter, and its patterns refer to that; vLLM has a linear module for it."""
    reference, model = reference_of(name, tmp_path)
    settings = {"target_modules": "all-linear", "target_parameters": None, "alpha_pattern": {"mlp.gate.weight": 9}}
    deltas = save_adapter(model, tmp_path / "adapter", **settings)
    theirs = split(deltas, name)
    artefact, heard = measured(tmp_path / "adapter", reference, NOTHING)
    assert artefact is not None
    assert heard.verdict is not None
    path = MIXTURES[name][1].partition(".")[0]
    routers = {f"model.layers.{i}.{path}.gate": deltas[f"model.layers.{i}.mlp.gate.weight"] for i in range(2)}
    assert {one.name for one in heard.verdict.modules} == set(reference.modules) - {"lm_head"}
    assert {*routers, *theirs} < set(reference.modules)
    adapter = read(tmp_path / "adapter", target(reference))
    ours = {one.name: one.b.double() @ one.a.double() for one in adapter.modules}
    loaded = LoRAModel.from_local_checkpoint(
        str(written(artefact, tmp_path / "written")),
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate", *(module.partition(f"{path}.")[2] for module in theirs)},
        PEFTHelper.from_local_dir(str(tmp_path / "written"), None),
        lora_model_id=1,
        device="cpu",
        weights_mapper=mapper_of(*VLLM[name]).get_rename_mapper(),
    )
    for module, delta in {**routers, **theirs}.items():
        assert float((ours[module] - delta.double()).abs().max()) <= 1e-6
        made: Any = loaded.get_lora(module)
        assert float((made.lora_b.double() @ made.lora_a.double() * made.scaling - delta.double()).abs().max()) <= 1e-6
    reference.close()


def test_two_layers_that_one_spelling_fits_take_no_stack() -> None:
    into, out = Shape(24, 32), Shape(32, 24)
    kinds = {"gate_proj": into, "up_proj": into, "down_proj": out}
    paths = ("model.layers.0.mlp.experts", "language_model.model.layers.0.mlp.experts")
    one, two = ({f"{path}.0.{kind}": shape for kind, shape in kinds.items()} for path in paths)
    assert Stacks(one).find("backbone.layers.0.block_sparse_moe.experts.base_layer")
    assert not Stacks(one | two)
    assert Stacks(one | two).find(paths[0]) is None


def by_expert(directory: Path, name: str, reference: Reference) -> tuple[bytes, dict[str, Tensor]]:
    """The same adapter as files of 2025 have it: a pair for every matrix, cut out of the stacked tensors by hand."""
    _, path, (gate, up, down) = MIXTURES[name]
    config, weights = files_of(directory)
    stacked, found = load(weights), {}
    for layer in range(2):
        at = f"{PEFT}model.layers.{layer}.mlp.experts"
        for key in (f"{at}.base_layer", at):
            a, b = stacked[f"{key}.lora_A.weight"], stacked[f"{key}.lora_B.weight"]
            for expert in range(3):
                mine = a[4 * expert : 4 * expert + 4], b[:, expert::3]
                both = a.shape[1] == 32
                rows = b.shape[0] // 2
                parts = ((gate, mine[1][:rows]), (up, mine[1][rows:])) if both else ((down, mine[1]),)
                for kind, outputs in parts:
                    named = f"{PEFT}model.layers.{layer}.{path}.{expert}.{kind}"
                    found[f"{named}.lora_A.weight"] = mine[0].clone()
                    found[f"{named}.lora_B.weight"] = outputs.contiguous()
    assert len(found) == 2 * sum(".experts." in module for module in reference.modules)
    return json.dumps(json.loads(config) | {"target_parameters": None}).encode(), found


def validated(config: bytes, tensors: dict[str, Tensor], model: TargetModel) -> Adapter:
    return validate(config, io.BytesIO(save(tensors)), model, ValidateLimits())


def test_by_expert_is_the_same_adapter(mixture: tuple[str, Reference, Path]) -> None:
    name, reference, directory = mixture
    one = read(directory, target(reference))
    two = validated(*by_expert(directory, name, reference), target(reference))
    for ours, theirs in zip(one.modules, two.modules, strict=True):
        assert ours.name == theirs.name
        assert torch.equal(ours.a, theirs.a)
        assert torch.equal(ours.b, theirs.b)


def measured(directory: Path, reference: Reference, policy: Policy) -> tuple[Artefact | None, Heard]:
    """The way through all stages."""
    measure, heard = Measure(target(reference), ValidateLimits(), reference, policy, 60.0), Heard()
    with (directory / "adapter_model.safetensors").open("rb") as weights:
        return sanitise(measure, files_of(directory)[0], weights, RECEIVED, heard), heard


def written(artefact: Artefact, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_bytes(artefact.config)
    (directory / "adapter_model.safetensors").write_bytes(artefact.weights)
    return directory


def packed(directory: Path, name: str) -> dict[str, dict[str, Tensor]]:
    """By layer and projection, the updates of all experts as vLLM packs them: its loader, its mapper, its pack_moe."""
    _, path, (gate, up, down) = MIXTURES[name]
    each = [f"experts.{expert}.{kind}" for expert in range(3) for kind in (gate, down, up)]
    expected = {*each, "experts", "q_proj", "o_proj"}
    mapper = mapper_of(*VLLM[name]).get_rename_mapper()
    helper = PEFTHelper.from_local_dir(str(directory), None)
    loaded = LoRAModel.from_local_checkpoint(
        str(directory), expected, helper, lora_model_id=1, device="cpu", weights_mapper=mapper
    )
    found = {}
    for layer in range(2):
        prefix = f"model.layers.{layer}.{path.rpartition('.')[0]}"
        members = [loaded.get_lora(f"{prefix}.{one}") for one in each]
        if any(members):
            made = PackedLoRALayerWeights.pack_moe(members, f"{prefix}.experts")
            products = [
                torch.bmm(b.double(), a.double()) * scale
                for a, b, scale in zip(made.lora_a, made.lora_b, made.scaling, strict=True)
            ]
            found[f"model.layers.{layer}.{path}"] = dict(zip((gate, down, up), products, strict=True))
    return found


@pytest.mark.parametrize("name", SERVED)
def test_the_engine_packs_what_peft_means(tmp_path: Path, name: str) -> None:
    """Accepted, balanced, written, loaded by vLLM's own code: every expert's update is PEFT's within 1e-6."""
    reference, model = reference_of(name, tmp_path)
    theirs = split(save_adapter(model, tmp_path / "adapter", target_modules=["q_proj", "o_proj"]), name)
    artefact, heard = measured(tmp_path / "adapter", reference, NOTHING)
    assert artefact is not None
    assert heard.verdict is not None
    assert heard.verdict.outcome is Outcome.CLEAN
    assert all(one.scores[NOTHING.comparison] is not None for one in heard.verdict.modules)
    found = packed(written(artefact, tmp_path / "written"), name)
    ours = {
        f"{path}.{expert}.{kind}": one
        for path, kinds in found.items()
        for kind, all_of in kinds.items()
        for expert, one in enumerate(all_of)
    }
    assert ours.keys() == theirs.keys()
    for module, delta in ours.items():
        assert float((delta - theirs[module].double()).abs().max()) <= 1e-6
    reference.close()


@pytest.mark.parametrize("action", [Action.PROJECT, Action.PRUNE])
def test_condemned_experts_are_corrected_and_the_engine_still_packs_the_layer(
    mixture: tuple[str, Reference, Path], tmp_path: Path, action: Action
) -> None:
    name, reference, directory = mixture
    adapter = balance_all(read(directory, target(reference)))
    scores = sorted(one.scores[NOTHING.comparison] or 0.0 for one in screen(adapter, reference, NOTHING).modules)
    policy = replace(
        NOTHING,
        tau=max(0.0, scores[len(scores) // 2]),
        action=action,
        max_removed_share=1.0,
        max_update_ratio=1e9,
        project_outputs=1,
    )
    artefact, heard = measured(directory, reference, policy)
    assert artefact is not None
    assert heard.verdict is not None
    condemned = {one.name for one in heard.verdict.modules if one.decision is not Decision.KEEP}
    assert 0 < len(condemned) < len(adapter.modules)
    folder = written(artefact, tmp_path / "written")
    before = {one.name: one.b.double() @ one.a.double() for one in adapter.modules}
    for path, kinds in packed(folder, name).items():
        for kind, all_of in kinds.items():
            for expert, delta in enumerate(all_of):
                module = f"{path}.{expert}.{kind}"
                change = float((delta - before[module]).abs().max())
                assert (change > 1e-6) is (module in condemned)
                assert bool(delta.any()) is (action is Action.PROJECT or module not in condemned)
    check_form(artefact.config, artefact.weights, heard.verdict.served, target(reference))
    again, _ = measured(folder, reference, accepting(policy))
    assert again is not None
    assert again.digest == artefact.digest


def test_an_expert_of_no_verdict_is_zero_or_out_of_form(mixture: tuple[str, Reference, Path]) -> None:
    """A matrix that no verdict serves may be in the file only as zeros: the gateway checks that after the sandbox, too."""
    _, reference, directory = mixture
    adapter = balance_all(read(directory, target(reference)))
    verdict = screen(adapter, reference, NOTHING)
    one = replace(verdict.modules[0], decision=Decision.PRUNE)
    pruned = replace(verdict, modules=(one, *verdict.modules[1:]), outcome=Outcome.PRUNED)
    artefact = canonicalise(balance_all(cut(adapter, pruned)), pruned, RECEIVED, target(reference))
    check_form(artefact.config, artefact.weights, pruned.served, target(reference))
    tensors = load(artefact.weights)
    for side in "AB":
        key = f"{PEFT}{one.name}.lora_{side}.weight"
        spoiled = save(tensors | {key: torch.full_like(tensors[key], 1e-30)})
        with pytest.raises(ValueError, match="not zero"):
            check_form(artefact.config, spoiled, pruned.served, target(reference))


def refused(config: bytes, tensors: dict[str, Tensor], model: TargetModel, code: Code, *words: str) -> None:
    with pytest.raises(Refused) as caught:
        validated(config, tensors, model)
    error = caught.value
    assert error.code is code, error.message
    said = " ".join([error.message, error.hint, *(fault.what_to_do for fault in error.details)])
    for word in words:
        assert word in said


@pytest.mark.hostile("K23")
def test_some_of_a_layers_experts_are_refused(mixture: tuple[str, Reference, Path]) -> None:
    name, reference, directory = mixture
    config, tensors = by_expert(directory, name, reference)
    _, path, (gate, _, down) = MIXTURES[name]
    for gone in (f"layers.0.{path}.1.{down}.", f"layers.1.{path}.2.{gate}.", f".{down}."):
        some = {key: value for key, value in tensors.items() if gone not in key}
        refused(config, some, target(reference), UNPAIRED_TENSOR, "all of a layer's experts", "target_parameters")
    config, weights = files_of(directory)
    stacked = load(weights)
    outer = {key: value for key, value in stacked.items() if ".base_layer" not in key}
    refused(config, outer, target(reference), UNPAIRED_TENSOR, "all of a layer's experts")
    one_layer = {key: value for key, value in stacked.items() if "layers.1" in key}
    assert len(validated(config, one_layer, target(reference)).modules) == 9


@pytest.mark.hostile("K23")
def test_an_expert_named_twice_is_refused(mixture: tuple[str, Reference, Path]) -> None:
    name, reference, directory = mixture
    config, weights = files_of(directory)
    stacked = load(weights)
    _, single = by_expert(directory, name, reference)
    model = target(reference)
    refused(config, stacked | single, model, BAD_TENSOR_NAME, "both adapt", "one way only")
    one = next(key for key in single if "lora_A" in key)
    both = {key: single[key] for key in (one, one.replace("lora_A", "lora_B"))}
    refused(config, stacked | both, model, BAD_TENSOR_NAME, "both adapt")
    inner = {key: value for key, value in stacked.items() if "layers.0" in key and ".base_layer" in key}
    twice = {key.replace(".base_layer", ""): value.clone() for key, value in inner.items()}
    refused(config, stacked | twice, model, BAD_TENSOR_NAME, "both adapt")
    other = {key.replace(".mlp.", ".block_sparse_moe."): value.clone() for key, value in inner.items()}
    refused(config, stacked | other, model, BAD_TENSOR_NAME, "two names of one module")


@pytest.mark.hostile("K23")
def test_stacked_factors_of_other_shapes_are_refused(mixture: tuple[str, Reference, Path]) -> None:
    _, reference, directory = mixture
    config, weights = files_of(directory)
    stacked, model = load(weights), target(reference)
    key = f"{PEFT}model.layers.0.mlp.experts"
    a, b = stacked[f"{key}.lora_A.weight"], stacked[f"{key}.lora_B.weight"]

    def with_pair(a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return stacked | {f"{key}.lora_A.weight": a.contiguous(), f"{key}.lora_B.weight": b.contiguous()}

    refused(config, with_pair(a[:-1], b[:, :-1]), model, WRONG_SHAPE, "each of 3 experts")
    refused(config, with_pair(a[:-3], b), model, WRONG_SHAPE, "each of 3 experts")
    refused(config, with_pair(a[:9], b[:, :9]), model, WRONG_SHAPE, "rank 3")
    refused(config, with_pair(a[:, :-1], b), model, WRONG_SHAPE, "gate_up_proj", "down_proj")
    refused(config, with_pair(b.T, a.T), model, WRONG_SHAPE, "gate_up_proj", "down_proj")
    refused(config, stacked, target(reference, max_rank=3), RANK_TOO_HIGH, "the engine takes 3")
    deeper = {name.replace(".base_layer", ".base_layer.base_layer"): value for name, value in stacked.items()}
    refused(config, deeper, model, UNKNOWN_MODULE)


@pytest.mark.hostile("K23")
def test_without_measured_experts_all_of_it_is_refused(mixture: tuple[str, Reference, Path]) -> None:
    name, reference, directory = mixture
    attention = {module: shape for module, shape in reference.modules.items() if ".experts." not in module}
    model = replace(target(reference), modules=attention)
    config, weights = files_of(directory)
    refused(config, load(weights), model, UNSUPPORTED_CONFIG, "measures no experts", "a reference with experts")
    refused(*by_expert(directory, name, reference), model, UNKNOWN_MODULE)


def test_the_zero_adapter_is_on_no_expert(mixture: tuple[str, Reference, Path]) -> None:
    _, reference, _ = mixture
    model = target(reference)
    (module,) = zero_adapter(model).modules
    assert ".experts." not in module.name
    assert not is_router(module.name)
    towers = replace(model, modules={"a.visual": Shape(4, 4), "visual.blocks.0.proj": Shape(4, 4), **model.modules})
    assert zero_adapter(towers).modules[0].name == "a.visual"
    experts = {module: shape for module, shape in model.modules.items() if ".experts." in module}
    adapter = balance_all(zero_adapter(replace(model, modules=experts)))
    verdict = screen(adapter, reference, NOTHING)
    artefact = canonicalise(adapter, verdict, RECEIVED, replace(model, modules=experts))
    assert len(load(artefact.weights)) == 2 * 9
