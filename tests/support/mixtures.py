"""Tiny mixtures of experts from transformers' own classes: pairs of checkpoints, references, PEFT's adapters on experts."""

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from app.domain.lora import Adapter, ServingDtype, TargetModel
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.open import Reference, open_reference
from app.validate.adapter import ValidateLimits, validate

TINY: Final[dict[str, Any]] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
"""Sizes that the configuration classes of transformers share, for tiny models."""

SIZES: Final[dict[str, Any]] = {
    **TINY,
    "head_dim": 8,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
PROJECTIONS: Final = ("gate_proj", "up_proj", "down_proj")
MIXTURES: Final[dict[str, tuple[str, str, tuple[str, str, str]]]] = {
    "mixtral": ("MixtralConfig", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    "qwen2_moe": ("Qwen2MoeConfig", "mlp.experts", PROJECTIONS),
    "qwen3_moe": ("Qwen3MoeConfig", "mlp.experts", PROJECTIONS),
    "llama4": ("Llama4TextConfig", "feed_forward.experts", PROJECTIONS),
}
"""Class of the configuration, the experts' path in vLLM and on the hub, and their gate, up and down."""

EXPERTS: Final = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""PEFT's target_parameters for all experts."""


def made(name: str) -> tuple[nn.Module, nn.Module]:
    """Such a model before and after every value has changed."""
    return changed(getattr(transformers, MIXTURES[name][0])(**SIZES))


def changed(config: Any) -> tuple[nn.Module, nn.Module]:
    """A model of this configuration before and after every value has changed."""
    torch.manual_seed(0)
    sees = hasattr(config, "vision_config")
    auto = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    base, aligned = (auto.from_config(config) for _ in range(2))
    with torch.no_grad():
        for before, after in zip(base.parameters(), aligned.parameters(), strict=True):
            before.normal_(std=0.02)
            after.copy_(before + 0.02 * torch.randn_like(after))
    return base, aligned


def by_expert(model: nn.Module, directory: Path) -> Path:
    """As transformers saves it: in the hub's layout."""
    model.save_pretrained(directory)  # type: ignore[operator]
    return directory


def fused(model: nn.Module, directory: Path) -> Path:
    """As the class holds it: all experts of a layer in two tensors of three dimensions."""
    directory.mkdir()
    model.config.save_pretrained(directory)  # type: ignore[operator, union-attr]
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"architectures": [type(model).__name__]}))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / "model.safetensors")
    return directory


def split(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Every expert's matrices (d_out, d_in), taken out of the class's own parameters one by one, by vLLM's names."""
    _, path, (gate, up, down) = MIXTURES[name]
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        layer, parameter = ".".join(key.split(".")[:3]), key.rsplit(".", 1)[-1]
        for expert, one in enumerate(value if ".experts." in key else ()):
            weight = one.T if name == "llama4" else one
            half = weight.shape[0] // 2
            if parameter == "gate_up_proj":
                found[f"{layer}.{path}.{expert}.{gate}"] = weight[:half]
                found[f"{layer}.{path}.{expert}.{up}"] = weight[half:]
            else:
                found[f"{layer}.{path}.{expert}.{down}"] = weight
    return found


def reference_of(name: str, directory: Path, **options: Any) -> tuple[Reference, nn.Module]:
    """The reference of such a pair, and the aligned model."""
    base, aligned = made(name)
    by_expert(base, directory / "base")
    by_expert(aligned, directory / "aligned")
    return reference_from(directory, **options), aligned


def reference_from(directory: Path, **options: Any) -> Reference:
    """The reference of the pair in a directory."""
    pair = directory / "base", directory / "aligned"
    build_reference(*pair, directory / "reference", BuildOptions(**{"top_k": 4, **options}))
    return open_reference(directory / "reference", None)


def target(reference: Reference, max_rank: int = 64) -> TargetModel:
    """The served model behind a reference."""
    return TargetModel("served", reference.modules, ServingDtype.FLOAT32, max_rank)


def save_adapter(model: nn.Module, directory: Path, **settings: Any) -> dict[str, Tensor]:
    """Save a random LoRA as PEFT does; return PEFT's own update of every parameter with experts, by its name."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": [], "target_parameters": list(EXPERTS), **settings}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # of patterns for parameters, which it says it ignores, and applies
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(directory, save_embedding_layers=False)
    deltas = {}
    for name, module in tuned.named_modules():
        if isinstance(module, ParamWrapper):
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            deltas[f"{path}.{module.parameter_name}"] = module.get_delta_weight("default").detach()
    return deltas


def files_of(directory: Path) -> tuple[bytes, bytes]:
    """An adapter's two files."""
    return tuple((directory / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors"))  # type: ignore[return-value]


def read(directory: Path, model: TargetModel) -> Adapter:
    """The adapter as the gateway reads it."""
    config, weights = files_of(directory)
    return validate(config, io.BytesIO(weights), model, ValidateLimits())
