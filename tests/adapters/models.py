"""Served models of the cases, by their linear modules as the hub's checkpoint names them; widths are tiny."""

from collections.abc import Iterable, Mapping
from typing import Final

from app.domain.lora import ServingDtype, Shape, TargetModel

WIDTH: Final = 16
LAYERS: Final = 2
MAX_RANK: Final = 64

ATTENTION: Final = tuple(f"self_attn.{side}_proj" for side in "qkvo")
MLP: Final = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LLAMA: Final = ATTENTION + MLP
GDN: Final = tuple(f"linear_attn.{one}" for one in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"))
GLM: Final = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
SIGLIP: Final = (*ATTENTION[:3], "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


def _layers(prefix: str, kinds: Iterable[str]) -> list[str]:
    return [f"{prefix}.{i}.{kind}" for i in range(LAYERS) for kind in kinds]


MODELS: Final[Mapping[str, list[str]]] = {
    "llama": [*_layers("model.layers", LLAMA), "lm_head"],
    "gemma3": [
        *_layers("language_model.model.layers", LLAMA),
        *_layers("vision_tower.vision_model.encoder.layers", SIGLIP),
    ],
    "gemma4": [
        *_layers("model.language_model.layers", (*LLAMA, "per_layer_input_gate", "per_layer_projection")),
        "model.language_model.per_layer_model_projection",
        "model.embed_vision.embedding_projection",
    ],
    "qwen2_5_vl": [*_layers("model.layers", LLAMA), *_layers("visual.blocks", ("attn.qkv", "attn.proj", *MLP))],
    "llava": _layers("language_model.model.layers", LLAMA),
    "mistral3": _layers("language_model.model.layers", LLAMA),
    "idefics3": [
        *_layers("model.text_model.layers", LLAMA),
        *_layers("model.vision_model.encoder.layers", SIGLIP),
        "model.connector.modality_projection.proj",
    ],
    "qwen3_5": [
        *_layers("model.language_model.layers", (*LLAMA, *GDN)),
        *_layers("model.visual.blocks", ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")),
    ],
    "nemotron_h": _layers("backbone.layers", tuple(f"mixer.{side}_proj" for side in "qkvo")),
    "phi3": _layers("model.layers", ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    "phi": _layers("model.layers", (*ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2")),
    "chatglm": _layers("transformer.encoder.layers", GLM),
    "gpt_neox": _layers("gpt_neox.layers", tuple(kind.replace("self_attention", "attention") for kind in GLM)),
    "opt": _layers("model.decoder.layers", (*ATTENTION[:3], "self_attn.out_proj", "fc1", "fc2")),
    "granitemoehybrid": _layers("model.layers", (*ATTENTION, "shared_mlp.input_linear", "shared_mlp.output_linear")),
    "mixtral": _layers("model.layers", ATTENTION),
    "phimoe": _layers("model.layers", (*ATTENTION, "block_sparse_moe.gate")),
}


def served(model: str) -> TargetModel:
    """The model behind a reference that measures all of it."""
    shape = Shape(WIDTH, WIDTH)
    return TargetModel(model, dict.fromkeys(MODELS[model], shape), ServingDtype.FLOAT32, MAX_RANK)
