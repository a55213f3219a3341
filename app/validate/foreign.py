"""Files of other tools than PEFT, recognised by their names, so that a refusal says which tool to run.

Nothing is converted here: the layouts differ in more than names (transposed factors, scalings elsewhere, permuted heads).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BAD_CONFIG, BAD_TENSOR_NAME, Refused

GIT_LFS: Final = b"version "
"""First bytes of a git-lfs pointer."""

LFS_REMEDY: Final = "Run `git lfs pull` in the repository, or download the file itself, and send that."
TORCH_SAVE: Final = (
    "Load it with PEFT and call save_pretrained(..., safe_serialization=True), which writes adapter_model.safetensors; "
    "pickles are not read."
)
ZERO_3: Final = (
    "DeepSpeed ZeRO-3 saves such files when the parameters are not gathered: set "
    '"stage3_gather_16bit_weights_on_model_save": true and save again, or run zero_to_fp32.py in the checkpoint and load '
    "its output into the PEFT model before save_pretrained."
)
_UNWRAP: Final = (
    "Unwrap the model before save_pretrained (model.module of DDP, model._orig_mod of torch.compile, "
    "accelerator.unwrap_model), or remove {} from every tensor's name."
)
_MLX: Final = (
    "mlx-lm's layout is not PEFT's: for each module write lora_A.weight = lora_a transposed and lora_B.weight = lora_b "
    "transposed under base_model.model.<module>, with lora_alpha = scale · r in adapter_config.json."
)


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool's mark in tensor names, and what to say."""

    mark: re.Pattern[str]
    what: str
    remedy: str


def _tool(mark: str, what: str, remedy: str) -> _Tool:
    return _Tool(re.compile(mark, re.MULTILINE), what, remedy)


_TOOLS: Final = (
    _tool(
        r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|SCB)$|\.quant_state\.bitsandbytes",
        "it holds quantised weights of bitsandbytes beside or instead of the adapter",
        "Save the adapter alone: call save_pretrained on the PEFT model, not on the quantised one.",
    ),
    _tool(
        r"^lora_(?:unet|te)[0-9]*_|\.lora_(?:down|up)\.weight$",
        "these are kohya's names, for image models",
        "Send a LoRA of the served language model, saved by PEFT.",
    ),
    _tool(
        r"\.adapter\.linear_(?:in|out)\.weight$|\.lora_(?:in|out)\.weight$",
        "these are Megatron's names",
        "Export it in Hugging Face's layout: `nemo llm export ... target=hf-peft`, or Megatron-Bridge's adapter export.",
    ),
    _tool(
        r"^layers\.[0-9]+\.(?:attention\.w[qkvo]|feed_forward\.w[123])\.lora_[AB]\.weight$",
        "these are mistral-finetune's names",
        "Its heads are stored in another order than Hugging Face's: train with PEFT on the Hugging Face checkpoint.",
    ),
    _tool(
        r"\.lora_[ab]\.weight$",
        "these are torchtune's names",
        "Save it with torchtune's FullModelHFCheckpointer, which writes PEFT's adapter_model.safetensors and "
        "adapter_config.json beside its own files.",
    ),
    _tool(r"\.lora_[ab]$", "these are the names of MLX", _MLX),
    _tool(
        r"\.experts\.lora_[a-z_]+_[AB]$",
        "experts' factors in one tensor of three dimensions, as NeMo Automodel writes them",
        "Experts' factors are read as PEFT writes them: a pair for every matrix by its name, or target_parameters.",
    ),
    _tool(r"(?:^|\.)_orig_mod\.", "torch.compile's wrapper stands in the names", _UNWRAP.format("`_orig_mod.`")),
    _tool(
        r"(?:^|\.)_fsdp_wrapped_module\.",
        "FSDP's wrapper stands in the names",
        _UNWRAP.format("`_fsdp_wrapped_module.`"),
    ),
    _tool(
        r"(?:^|\.)_checkpoint_wrapped_module\.",
        "activation checkpointing's wrapper stands in the names",
        _UNWRAP.format("`_checkpoint_wrapped_module.`"),
    ),
    _tool(
        r"^(?:base_model\.model\.)?module\.",
        "the wrapper of DistributedDataParallel stands in the names",
        _UNWRAP.format("`module.`"),
    ),
)


def foreign(names: Iterable[str]) -> Refused | None:
    """Return the refusal that names the tool these tensor names are from; None if none is known."""
    text = "\n".join(names)
    for tool in _TOOLS:
        if found := tool.mark.search(text):
            start = text.rfind("\n", 0, found.start() + 1) + 1
            name = text[start:].split("\n", 1)[0]
            return Refused(BAD_TENSOR_NAME, f"tensor {name[:200]!r}: {tool.what}", param=name, remedy=tool.remedy)
    return None


_MLX_FIELDS: Final = frozenset({"fine_tune_type", "lora_parameters", "lora_layers", "adapter_path"})
_ADAPTER_CONFIG: Final = "Send the adapter_config.json that PEFT's save_pretrained wrote beside the weights."


def foreign_config(fields: Mapping[str, Any]) -> Refused | None:
    """Return the refusal of a configuration of another tool; None if none is known."""
    if _MLX_FIELDS & fields.keys():
        return Refused(BAD_CONFIG, "this is the configuration of MLX, not of PEFT", param="config", remedy=_MLX)
    if "model_type" in fields or "architectures" in fields:
        what = "this is a model's config.json, not an adapter's"
        return Refused(BAD_CONFIG, what, param="config", remedy=_ADAPTER_CONFIG)
    return None
