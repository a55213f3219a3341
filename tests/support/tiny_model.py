"""A tiny random Llama that the real engine can serve, and random LoRA adapters for it. Nothing is trained.

The weights are large enough that greedy decoding differs visibly between the served model and each adapter.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN = 64
HEADS = 2  # head_dim 32, the smallest that vLLM's CPU attention takes
LAYERS = 2
INTERMEDIATE = 128
MAX_LENGTH = 512  # tokens
RANK = 4
JSON = (
    *("{", "}", ":", ",", "[", "]", " ", "\n", '"colour"', '"red"', '"green"', '"name"', '"arguments"', '"paint"'),
    *("<tool_call>", "</tool_call>"),
)
WORDS = 200 - len(JSON)
BLANKS = tuple(6 + WORDS + JSON.index(blank) for blank in (" ", "\n"))
"""Token ids of what JSON may hold any amount of: a random model, given the choice, says nothing else."""

MODEL_NAME = "tiny-llama"

SHAPES = {  # module's last name → (d_out, d_in)
    "q_proj": (HIDDEN, HIDDEN),
    "v_proj": (HIDDEN, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
}
_PARENT = {"q_proj": "self_attn", "v_proj": "self_attn", "up_proj": "mlp"}
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def write_model(directory: Path, seed: int = 0) -> Path:
    """Write the model and its tokenizer, in float32."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_adapter(
    directory: Path,
    seed: int,
    *,
    scale: float = 0.5,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    layers: Sequence[int] = tuple(range(LAYERS)),
) -> Path:
    """Write a LoRA adapter as PEFT would. `scale`: standard deviation of B; 0 makes one that changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        for module in modules:
            d_out, d_in = SHAPES[module]
            key = f"base_model.model.model.layers.{layer}.{_PARENT[module]}.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, d_in, generator=generator)
            tensors[f"{key}.lora_B.weight"] = scale * torch.randn(d_out, RANK, generator=generator)
    return write_tensors(directory, tensors, modules)


def write_tensors(directory: Path, tensors: dict[str, torch.Tensor], modules: Sequence[str]) -> Path:
    """Write an adapter of exactly these tensors, however wrong they are."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "base_model_name_or_path": MODEL_NAME,
        "bias": "none",
        "lora_alpha": RANK,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the roles, `w0` and so on, and what a little JSON is made of."""
    words = ["<pad>", "<unknown>", "<end>", "system", "user", "assistant", *(f"w{i}" for i in range(WORDS)), *JSON]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unknown>",
        eos_token="<end>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    return fast
