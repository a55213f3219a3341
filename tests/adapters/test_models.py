"""The cases' models have the linear modules that transformers' classes have, so that a reference measures them."""

import re
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from app.domain.spellings import common_name
from tests.adapters.models import MODELS

CLASSES: dict[str, tuple[str, str]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "llava": ("LlavaConfig", "LlavaForConditionalGeneration"),
    "mistral3": ("Mistral3Config", "Mistral3ForConditionalGeneration"),
    "qwen3_5": ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration"),
    "nemotron_h": ("NemotronHConfig", "NemotronHForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    "phi": ("PhiConfig", "PhiForCausalLM"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
    "opt": ("OPTConfig", "OPTForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "phimoe": ("PhimoeConfig", "PhimoeForCausalLM"),
}


def kind_of(module: str) -> str:
    return re.sub(r"\.[0-9]+\.", ".N.", common_name(module))


@pytest.mark.parametrize("model", CLASSES)
def test_the_class_holds_them_in_linear_modules(model: str) -> None:
    config, name = (getattr(transformers, one) for one in CLASSES[model])
    with torch.device("meta"):
        built: Any = name(config())
    linear = {kind_of(module) for module, one in built.named_modules() if isinstance(one, nn.Linear)}
    text = {kind_of(module) for module in MODELS[model] if "vision" not in module}
    assert text <= linear
