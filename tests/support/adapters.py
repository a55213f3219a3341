"""Adapter files as PEFT writes them, built by hand for any TargetModel, and the tools to spoil them."""

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from app.domain.lora import Adapter, ServingDtype, Shape, TargetModel
from app.validate.adapter import ValidateLimits, validate

LIMITS = ValidateLimits(max_scaling=64.0)

SHAPES: Mapping[str, Shape] = {
    "self_attn.q_proj": Shape(16, 16),
    "self_attn.v_proj": Shape(8, 16),
    "mlp.down_proj": Shape(16, 24),
}
"""Linear modules of one decoder layer: square, grouped-query and wide."""

PEFT_DEFAULTS: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "somewhere/served-model",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
"""adapter_config.json of PEFT 0.21; test_peft.py holds it against the installed one."""


def target(layers: int = 2, *, dtype: ServingDtype = ServingDtype.FLOAT32, max_rank: int = 8) -> TargetModel:
    """A small served model."""
    modules = {f"model.layers.{i}.{kind}": shape for i in range(layers) for kind, shape in SHAPES.items()}
    return TargetModel("served", modules, dtype, max_rank)


def key(module: str, side: str) -> str:
    """PEFT's name of one factor."""
    return f"base_model.model.{module}.lora_{side}.weight"


def tensors_for(
    model: TargetModel, rank: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Both factors of every module, random."""
    g = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for module, shape in model.modules.items():
        found[key(module, "A")] = (torch.randn(rank, shape.d_in, generator=g) * 0.1).to(dtype)
        found[key(module, "B")] = (torch.randn(shape.d_out, rank, generator=g) * 0.1).to(dtype)
    return found


def raw(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with exactly this header and data, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parts_of(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file, to be changed and put together again by `raw`."""
    (length,) = struct.unpack("<Q", file[:8])
    header: dict[str, Any] = json.loads(file[8 : 8 + length])
    return header, file[8 + length :]


@dataclass(frozen=True)
class Upload:
    """What a stranger sends: a configuration and tensors, both still easy to change."""

    model: TargetModel
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def valid(cls, model: TargetModel | None = None, rank: int = 4, alpha: float = 8, seed: int = 0) -> Self:
        """A well-formed adapter on every module."""
        model = target() if model is None else model
        return cls(model, {**PEFT_DEFAULTS, "r": rank, "lora_alpha": alpha}, tensors_for(model, rank, seed))

    def having(self, **fields: Any) -> Self:
        """With other fields in adapter_config.json."""
        return replace(self, config={**self.config, **fields})

    def without(self, *fields: str) -> Self:
        """Without some fields of adapter_config.json."""
        return replace(self, config={k: v for k, v in self.config.items() if k not in fields})

    def adding(self, tensors: Mapping[str, Tensor]) -> Self:
        """With more, or other, tensors."""
        return replace(self, tensors={**self.tensors, **tensors})

    def dropping(self, *names: str) -> Self:
        """Without some tensors."""
        return replace(self, tensors={k: v for k, v in self.tensors.items() if k not in names})

    def renaming(self, old: str, new: str) -> Self:
        """With one tensor under another name."""
        return replace(self, tensors={new if k == old else k: v for k, v in self.tensors.items()})

    @property
    def config_bytes(self) -> bytes:
        """adapter_config.json."""
        return json.dumps(self.config, indent=2, sort_keys=True).encode()

    @property
    def weights_bytes(self) -> bytes:
        """adapter_model.safetensors."""
        return save(self.tensors, metadata={"format": "pt"})

    def validate(self, limits: ValidateLimits = LIMITS) -> Adapter:
        """What the gateway makes of it."""
        return check(self.config_bytes, self.weights_bytes, self.model, limits)


def check(config: bytes, weights: bytes, model: TargetModel, limits: ValidateLimits = LIMITS) -> Adapter:
    """validate() on bytes."""
    return validate(config, io.BytesIO(weights), model, limits)
