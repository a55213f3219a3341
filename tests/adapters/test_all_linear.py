"""Adapters of PEFT's "all-linear" on each architecture's own class are read with PEFT's own update."""

import io
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from app.domain.lora import ServingDtype, TargetModel
from app.domain.spellings import Spellings
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits, validate
from tests.screen.test_linears import MHA, OPT
from tests.support.mixtures import TINY

TEXT: dict[str, Any] = {**TINY, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GDN: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEES = {**TOWER, "image_size": 28, "patch_size": 14}
QWEN_SEES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3_5TextConfig": TEXT | GDN,
    "PhiConfig": TEXT,
    "GPTNeoXConfig": MHA,
    "OPTConfig": MHA | OPT,
    "Starcoder2Config": TEXT,
    "BloomConfig": {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Lfm2Config": TEXT | {"layer_types": ["conv", "full_attention"]},
    "Gemma3Config": {"text_config": TEXT, "vision_config": SEES, "mm_tokens_per_image": 4},
    "LlavaConfig": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**SEES, "model_type": "clip_vision_model"},
    },
    "Mistral3Config": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**SEES, "model_type": "pixtral", "head_dim": 8},
    },
    "Qwen2_5_VLConfig": {"text_config": TEXT, "vision_config": QWEN_SEES},
    "Qwen3_5Config": {"text_config": TEXT | GDN, "vision_config": QWEN_SEES},
}


def made(config: str, directory: Path) -> nn.Module:
    """A tiny model of the class, saved before and after every matrix has changed."""
    torch.manual_seed(0)
    sees = "vision_config" in MODELS[config]
    auto = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    model: nn.Module = auto.from_config(getattr(transformers, config)(**MODELS[config]))
    model.save_pretrained(directory / "base")  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory / "aligned")  # type: ignore[operator]
    return model


def linear_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.weight.detach().clone() for name, one in model.named_modules() if isinstance(one, nn.Linear)}


@pytest.mark.parametrize("config", MODELS)
def test_all_linear_is_accepted_as_peft_merges_it(tmp_path: Path, config: str) -> None:
    model = made(config, tmp_path)
    build_reference(tmp_path / "base", tmp_path / "aligned", tmp_path / "reference", BuildOptions(top_k=4))
    reference = open_reference(tmp_path / "reference", None)
    before = linear_weights(model)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    files = [
        (tmp_path / "adapter" / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, 8)
    adapter = validate(files[0], io.BytesIO(files[1]), target, ValidateLimits())
    after = linear_weights(tuned.merge_and_unload())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    named = Spellings(before)
    assert {named.find(module.name) for module in adapter.modules} == changed
    for module in adapter.modules:
        name = named.find(module.name)
        assert name is not None
        torch.testing.assert_close(module.b @ module.a, after[name] - before[name], rtol=1e-4, atol=1e-6)
    reference.close()
