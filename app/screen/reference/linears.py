"""Linear modules of a model, as its class holds them: the only modules whose weights LoRA adapts and a reference measures.

Where transformers knows the class, it is built without weights (on the meta device) and asked; no code of the checkpoint's
is run. Other architectures are known by the names in their layers.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from app.domain.spellings import Spellings, common_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG: Final = "config.json"

_PART = r"(?:[A-Za-z0-9_]+\.)*"
_NAMES = "|".join((
    "[a-z_]*_proj",
    *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "Wqkv", "wqkv", "W_pack", "wo", "w[123]", "fc[12]"),
    *("c_fc", "in_proj_(?:qkv|qkvz|ba|z|a|b)", "kv_a_proj_with_mqa", "input_linear", "output_linear"),
))  # fmt: skip
LINEAR: Final = re.compile(rf"({_PART}(?:layers|blocks|h(?!\.[0-9]+\.{_PART}c_))\.[0-9]+\.{_PART}(?:{_NAMES}))\.weight")
"""Weights of linear modules in the layers of any architecture, by name. GPT-2's `h.0…c_attn`, `c_fc` and `c_proj` may be
transposed (Conv1D), so only the class can tell. Embeddings, heads, norms and routers are left to the class."""

NOT_SERVED: Final = re.compile(r"(?:^|\.)mtp\.")
"""Layers that only predict further tokens, on which engines load no adapter."""

HEADS: Final = frozenset({
    *("ApertusForCausalLM", "DeciLMForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "ExaoneForCausalLM"),
    *("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM", "FalconH1ForCausalLM", "GraniteForCausalLM", "GraniteMoeForCausalLM"),
    *("GraniteMoeHybridForCausalLM", "GraniteMoeSWAForCausalLM", "GraniteMoeSharedForCausalLM", "GraniteSWAForCausalLM"),
    *("HyperCLOVAXForCausalLM", "IQuestCoderForCausalLM", "InternLM3ForCausalLM", "JambaForCausalLM"),
    *("K2HorizonForCausalLM", "LLaMAForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Llama4ForCausalLM"),
    *("LlamaForCausalLM", "MiniCPM3ForCausalLM", "MiniCPMForCausalLM", "MixtralForCausalLM", "NemotronForCausalLM"),
    *("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM", "Param2MoEForCausalLM", "Phi3ForCausalLM", "PhiMoEForCausalLM"),
    *("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "SolarForCausalLM"),
    *("TeleChat2ForCausalLM", "TeleChat3ForCausalLM", "TeleFLMForCausalLM"),
})  # fmt: skip
"""Architectures on whose head vLLM loads a LoRA (`embedding_modules` of its class); with one on another's, such as Qwen 2's
or Mistral's, it refuses the whole adapter. A multimodal class has the head of its text part."""


def module_of(tensor: str) -> str | None:
    """Return the linear module of a layer whose weight this tensor is, by its name alone; None if it is none."""
    found = LINEAR.fullmatch(tensor)
    return None if found is None or NOT_SERVED.search(tensor) else found[1]


@dataclass(frozen=True, slots=True)
class ModelClass:
    """Modules of a model's class.

    linear: see `is_linear`. transposed: Conv1D, (d_in, d_out). tied: a head and the embedding whose weight it shares, which
    the engine uses whatever a checkpoint holds besides; None if it has its own.
    """

    modules: Spellings
    linear: frozenset[str]
    transposed: frozenset[str]
    tied: tuple[str, str] | None = None

    def holds(self, tensor: str) -> bool:
        """Return whether a two-dimensional tensor is the weight of a linear module; by its name if the class lacks it."""
        module = tensor.removesuffix(".weight")
        known = self.modules.find(module)
        if known is None:
            return module_of(tensor) is not None
        return module != tensor and known in self.linear and not NOT_SERVED.search(tensor)


def is_linear(module: nn.Module, name: str) -> bool:
    """Return whether a LoRA may be on a module of a class: nn.Linear, or a mixture's router, whose weight is one's.

    name: the module's. vLLM passes over the router of Nemotron-H.
    """
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    router = type(module).__name__.lower().endswith("topkrouter") and not name.endswith("mixer.gate")
    return router and isinstance(weight, nn.Parameter) and weight.ndim == 2


def model_class(checkpoint: Path) -> ModelClass | None:
    """Return the class of a checkpoint's model; None if it has no config.json, or one that transformers does not know."""
    if not (checkpoint / CONFIG).is_file():
        return None
    try:
        model, head = _on_meta(checkpoint)
    except (ImportError, OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError, AssertionError):
        return None  # a configuration that the installed class does not take: the names remain
    kinds = {name: module for name, module in model.named_modules() if name}
    linear = {name for name, module in kinds.items() if is_linear(module, name)}
    heads = [name for name in sorted(linear) if common_name(name) == "lm_head"]
    shared = getattr(model.config.get_text_config(), "tie_word_embeddings", False)  # type: ignore[union-attr, operator]
    tied = None
    if shared or not head:
        linear -= set(heads)
    if shared and head and heads:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        tied = heads[0], next(name for name, module in kinds.items() if module is embeddings)
    transposed = {name for name, module in kinds.items() if type(module).__name__ == "Conv1D"}
    return ModelClass(Spellings(kinds), frozenset(linear), frozenset(transposed), tied)


def _on_meta(checkpoint: Path) -> tuple[nn.Module, bool]:
    """Build the class that config.json names, without memory for its weights; return `serves_head` of it besides."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    classes = (getattr(transformers, name, None) for name in config.architectures or ())
    known = next((one for one in classes if one is not None), None)
    with torch.device("meta"):
        made: nn.Module = transformers.AutoModelForCausalLM.from_config(config) if known is None else known(config)
    return made, serves_head(config, config.architectures or ())


def serves_head(config: "PretrainedConfig", architectures: Iterable[str]) -> bool:
    """Return whether the engine serves a LoRA on the model's head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = config.get_text_config()
    return not HEADS.isdisjoint({*architectures, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)})
