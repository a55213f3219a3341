"""Table of architectures: the linear modules that a reference measures in each class of transformers, on the meta device.

`python -m tests.adapters.architectures` writes it into docs/adapters.md.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
import transformers
from torch import nn

from app.domain.spellings import common_name, is_tower
from app.screen.reference.experts import STACKED_ONLY
from app.screen.reference.linears import NOT_SERVED, is_linear, serves_head

PAGE: Final = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- architectures -->\n", "<!-- /architectures -->"

CLASSES: Final = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3_5ForCausalLM"),
    *("Qwen3NextForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM"),
    *("GraniteForCausalLM", "GraniteMoeHybridForCausalLM", "NemotronHForCausalLM", "Lfm2ForCausalLM"),
    *("Olmo2ForCausalLM", "CohereForCausalLM", "Glm4ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM"),
    *("FalconForCausalLM", "GPTNeoXForCausalLM", "GPTBigCodeForCausalLM", "OPTForCausalLM", "BloomForCausalLM"),
    *("MptForCausalLM", "GPT2LMHeadModel", "DeepseekV3ForCausalLM"),
    *("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "PhimoeForCausalLM", "GptOssForCausalLM"),
    *("Gemma3ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "LlavaForConditionalGeneration"),
    *("Mistral3ForConditionalGeneration", "Qwen3_5ForConditionalGeneration", "Gemma4ForConditionalGeneration"),
    *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
    *("Idefics3ForConditionalGeneration", "GemmaForCausalLM", "GraniteMoeForCausalLM", "SmolLM3ForCausalLM"),
    *("OlmoeForCausalLM", "Llama4ForCausalLM", "Cohere2ForCausalLM", "Exaone4ForCausalLM", "GPTJForCausalLM"),
    "CodeGenForCausalLM",
)

CONFIGS: Final = {
    "Idefics3ForConditionalGeneration": {"text_config": {"model_type": "llama", "vocab_size": 128_259}},
}
"""Fields of a class's configuration without whose change its default is not a model."""

LLAMA: Final = frozenset({*(f"{side}_proj" for side in "qkvo"), "gate_proj", "up_proj", "down_proj"})
SEVEN: Final = "Llama's seven"
"""Words for Llama's linear modules, which most architectures share."""

GRANITE: Final = "GraniteMoe"
"""Beginning of classes whose checkpoints name routers and experts otherwise than the classes do (input_linear)."""

_EXPERT: Final = re.compile(r"\.experts\.")


def built(name: str) -> nn.Module:
    """The class with its default configuration, or that of CONFIGS, without memory for its weights."""
    made = getattr(transformers, name)
    with torch.device("meta"):
        model: nn.Module = made(made.config_class(**CONFIGS.get(name, {})))
    return model


def row(name: str) -> str:
    """One line of the table."""
    model = built(name)
    kinds = {path: module for path, module in model.named_modules() if path and not NOT_SERVED.search(path)}
    linear = {path for path, module in kinds.items() if is_linear(module, path) and not _EXPERT.search(path)}
    if not serves_head(model.config, [name]):
        linear = {path for path in linear if common_name(path) != "lm_head"}
    if name.startswith(GRANITE):
        linear = {path for path in linear if not path.endswith(".router")}
    tower = {path for path in linear if is_tower(path)}
    transposed = {path for path, module in kinds.items() if type(module).__name__ == "Conv1D"}
    decoder = _names(linear - tower) or "–"
    if transposed:
        decoder += f"; not {_names(transposed)}: transposed"
    return f"| `{name}` | {decoder} | {_names(tower) or '–'} | {_experts(name, model)} |"


def _experts(name: str, model: nn.Module) -> str:
    stacked = {
        path.rsplit(".", 1)[-1]
        for path, weight in model.named_parameters()
        if weight.ndim == 3 and _EXPERT.search(path)
    }
    alone = any(_EXPERT.search(path) and isinstance(one, nn.Linear) for path, one in model.named_modules())
    if not stacked and not alone:
        return "–"
    if name.startswith(GRANITE) or not (alone or stacked >= {"gate_up_proj", "down_proj"}):
        return "not measured: other names"
    return "measured, written stacked" if name in STACKED_ONLY else "measured"


def _names(modules: Iterable[str]) -> str:
    last = {path.rsplit(".", 1)[-1] for path in modules}
    first = [SEVEN] if last >= LLAMA else []
    return ", ".join(first + [f"`{one}`" for one in sorted(last - LLAMA if first else last)])


def table() -> str:
    """The whole table."""
    head = ["| Class | Measured in the decoder | In towers and projectors | Experts |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(row(name) for name in sorted(CLASSES))])


def with_table(text: str) -> str:
    """The page with the table filled in."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
