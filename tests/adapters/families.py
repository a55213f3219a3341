"""Tiny configurations of the classes of transformers that people adapt, by the name of the configuration's class."""

from typing import Any, Final

from tests.screen.test_linears import MHA, OPT
from tests.support.mixtures import SIZES, TINY

IDS: Final[dict[str, Any]] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: Final[dict[str, Any]] = {**TINY, **IDS, "head_dim": 8}
MOE: Final[dict[str, Any]] = {**SIZES, **IDS, "shared_expert_intermediate_size": 24}
GPT: Final[dict[str, Any]] = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, **IDS}
GDN: Final[dict[str, Any]] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA: Final[dict[str, Any]] = {
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "shared_intermediate_size": 24,
}
MLA: Final[dict[str, Any]] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
TOWER: Final = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEES: Final = {**TOWER, "image_size": 28, "patch_size": 14}
QWEN_SEES: Final = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
QWEN_SEES_DEEP: Final = {**QWEN_SEES, "deepstack_visual_indexes": [0]}

FAMILIES: Final[dict[str, dict[str, Any]]] = {
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
    "MixtralConfig": MOE,
    "Qwen3MoeConfig": MOE,
    "GptOssConfig": MOE,
    "DeepseekV3Config": MOE | MLA,
}
"""Those that are looked at in every run."""

MORE: Final[dict[str, dict[str, Any]]] = {
    **dict.fromkeys(
        ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "GemmaConfig", "Gemma2Config"), TEXT
    ),
    **dict.fromkeys(("Gemma3TextConfig", "Phi3Config", "GraniteConfig", "SmolLM3Config", "Olmo2Config"), TEXT),
    **dict.fromkeys(("Glm4Config", "CohereConfig", "Cohere2Config", "StableLmConfig"), TEXT),
    **dict.fromkeys(("Qwen2MoeConfig", "OlmoeConfig", "PhimoeConfig", "Llama4TextConfig", "GraniteMoeConfig"), MOE),
    "Exaone4Config": TEXT | {"sliding_window": 8, "sliding_window_pattern": 2},
    "FalconConfig": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS},
    "GPTJConfig": GPT | {"rotary_dim": 4},
    "CodeGenConfig": GPT | {"rotary_dim": 4},
    "MptConfig": {"vocab_size": 40, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "GPTBigCodeConfig": GPT,
    "Qwen3NextConfig": MOE | GDN,
    "GraniteMoeHybridConfig": MOE | MAMBA,
    "Gemma4Config": {
        "text_config": TEXT | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 40},
        "vision_config": SEES,
        "audio_config": None,
    },
    "Qwen3VLConfig": {"text_config": TEXT, "vision_config": QWEN_SEES_DEEP},
    "Qwen3VLMoeConfig": {"text_config": MOE, "vision_config": QWEN_SEES_DEEP},
    "Idefics3Config": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": SEES},
}
"""Those that only `make long` looks at."""
