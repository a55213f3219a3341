"""What people serve, end to end: a pair saved by transformers → reference → LoRA saved by PEFT → validated, screened.

Every module's B·A must be what PEFT merges into the weights; PEFT's scaling (alpha/r, alpha/√r) is vLLM's too.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from app.domain.errors import UNPAIRED_TENSOR, Refused
from app.domain.lora import Adapter, ServingDtype, Shape, TargetModel
from app.domain.policy import Comparison, Policy, Unscorable
from app.domain.spellings import is_router
from app.domain.verdict import Outcome, Verdict
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.linears import serves_head
from app.screen.reference.open import Reference, open_reference
from app.screen.screen import screen
from app.validate.adapter import ValidateLimits, validate

POLICY = Policy(tau=1e6, top_k=2, max_pruned_share=1.0, unscorable=Unscorable.REJECT)
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS = 32, 48, 4, 2, 2

SIZES: Final[dict[str, Any]] = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
KV_SHAPE = Shape(HIDDEN * KV_HEADS // HEADS, HIDDEN)

ARCHITECTURES: Final[dict[str, tuple[Any, tuple[str, ...]]]] = {
    "llama": (LlamaConfig(**SIZES), ATTENTION + MLP),
    "llama_with_biases": (LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True), ATTENTION + MLP),
    "llama_with_a_tied_head": (LlamaConfig(**SIZES, tie_word_embeddings=True), ATTENTION + MLP),
    "mistral": (MistralConfig(**SIZES), ATTENTION + MLP),
    "qwen2": (Qwen2Config(**SIZES), ATTENTION + MLP),
    "qwen3": (Qwen3Config(**SIZES, head_dim=12), ATTENTION + MLP),  # heads wider than the model
    "gemma": (GemmaConfig(**SIZES, head_dim=16), ATTENTION + MLP),
    "gemma2": (Gemma2Config(**SIZES, head_dim=16), ATTENTION + MLP),
    "phi3": (Phi3Config(**SIZES), ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "mixtral": (MixtralConfig(**SIZES, num_local_experts=2), ATTENTION),
}


def save_pair(config: Any, directory: Path) -> nn.Module:
    """Base and aligned checkpoints, the latter sharded; returns the aligned model."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory / "base")  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.02 * torch.randn(parameter.shape[0], 3) @ torch.randn(3, parameter.shape[1]))
    model.save_pretrained(directory / "aligned", max_shard_size="20KB")  # type: ignore[operator]
    assert len(list((directory / "aligned").glob("*.safetensors"))) > 1
    return model


def reference_of(config: Any, directory: Path) -> tuple[Reference, nn.Module]:
    model = save_pair(config, directory)
    build_reference(directory / "base", directory / "aligned", directory / "reference", BuildOptions(top_k=4))
    return open_reference(directory / "reference", None), model


def save_adapter(model: nn.Module, directory: Path, settings: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Save a random LoRA as PEFT does; returns by module what merging adds to the weights."""
    before = {name: m.weight.detach().clone() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(directory)  # with the head's own weight where lm_head is adapted
    merged = tuned.merge_and_unload()
    after = {name: m.weight.detach() for name, m in merged.named_modules() if isinstance(m, nn.Linear)}
    return {name: after[name] - w for name, w in before.items() if not torch.equal(after[name], w)}


def screened(directory: Path, reference: Reference, policy: Policy = POLICY) -> tuple[Adapter, Verdict]:
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, max_rank=64)
    config = (directory / "adapter_config.json").read_bytes()
    weights = io.BytesIO((directory / "adapter_model.safetensors").read_bytes())
    adapter = validate(config, weights, target, ValidateLimits())
    return adapter, screen(adapter, reference, policy)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_on_every_linear_module_is_scored(architecture: str, tmp_path: Path) -> None:
    config, kinds = ARCHITECTURES[architecture]
    reference, model = reference_of(config, tmp_path)
    head = ("lm_head",) if serves_head(config, [type(model).__name__]) else ()
    dense = {name for name in reference.modules if ".experts." not in name and not is_router(name)}
    assert {name.rsplit(".", 1)[-1] for name in dense} == {*kinds, *head}
    assert len(dense) == LAYERS * len(kinds) + len(head)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": [*kinds, *head]}
    deltas = save_adapter(model, tmp_path / "adapter", settings)
    adapter, verdict = screened(tmp_path / "adapter", reference)
    assert verdict.outcome is Outcome.CLEAN
    assert {m.name for m in verdict.modules} == dense == set(deltas)
    for lora, m in zip(adapter.modules, verdict.modules, strict=True):
        assert reference.modules[m.name] == Shape(*deltas[m.name].shape)
        torch.testing.assert_close(lora.b @ lora.a, deltas[m.name], rtol=1e-4, atol=1e-6)
        assert m.update_norm == pytest.approx(float(deltas[m.name].double().norm()), rel=1e-4)
        assert all(m.scores[comparison] is not None for comparison in Comparison)
        assert m.scaling == pytest.approx(1.5)
    reference.close()


VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.self_attn.k_proj": 11},
    },
    "rslora_patterns": {"use_rslora": True, "rank_pattern": {"model.layers.0.self_attn.v_proj": 9}},
    "one_layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "rank_above_d_out": {"r": 20},  # k_proj writes 16 values
    "rank_equals_d_out": {"r": 16},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_effective_scaling_and_rank_are_pefts(variant: str, tmp_path: Path) -> None:
    reference, model = reference_of(LlamaConfig(**SIZES), tmp_path)
    assert reference.modules["model.layers.0.self_attn.k_proj"] == KV_SHAPE
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(ATTENTION + MLP)} | VARIANTS[variant]
    deltas = save_adapter(model, tmp_path / "adapter", settings)
    adapter, verdict = screened(tmp_path / "adapter", reference)
    assert {m.name for m in verdict.modules} == set(deltas)
    assert all(m.scores[POLICY.comparison] is not None for m in verdict.modules)
    for lora in adapter.modules:
        torch.testing.assert_close(lora.b @ lora.a, deltas[lora.name], rtol=1e-4, atol=1e-6)
    reference.close()


def test_layers_are_compared_with_their_own_reference(tmp_path: Path) -> None:
    """The released code matches by position: with layers_to_transform it compares a layer with another one's C."""
    reference, model = reference_of(LlamaConfig(**SIZES), tmp_path)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(ATTENTION)}
    save_adapter(model, tmp_path / "all", settings)
    whole, _ = screened(tmp_path / "all", reference)
    last = Adapter(tuple(m for m in whole.modules if ".layers.1." in m.name), whole.dtype)
    scores = {m.name: m.scores for m in screen(whole, reference, POLICY).modules}
    assert all(m.scores == scores[m.name] for m in screen(last, reference, POLICY).modules)
    reference.close()


def test_a_mixtures_router_is_measured_and_one_expert_alone_is_refused(tmp_path: Path) -> None:
    reference, _ = reference_of(ARCHITECTURES["mixtral"][0], tmp_path)
    left_out = reference.manifest.left_out
    expert = "model.layers.0.block_sparse_moe.experts.1.w2"
    assert f"{expert}.weight" not in left_out
    assert "model.layers.0.block_sparse_moe.gate" in reference.modules
    assert "model.embed_tokens.weight" in left_out
    from safetensors.torch import save_file

    from tests.support.adapters import Upload, key

    directory = tmp_path / "adapter"
    directory.mkdir()
    (directory / "adapter_config.json").write_bytes(Upload.valid().config_bytes)
    tensors = {key(expert, "A"): torch.ones(4, INTERMEDIATE), key(expert, "B"): torch.ones(HIDDEN, 4)}
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(Refused, match=r"block_sparse_moe\.experts: some") as caught:
        screened(directory, reference)
    assert caught.value.code is UNPAIRED_TENSOR
    reference.close()


def test_what_peft_writes_for_a_mixture_is_taken_as_it_is(tmp_path: Path) -> None:
    reference, model = reference_of(ARCHITECTURES["mixtral"][0], tmp_path)
    save_adapter(model, tmp_path / "adapter", {"r": 4, "target_modules": ["q_proj"]})
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_parameters"] == []
    screened(tmp_path / "adapter", reference)
