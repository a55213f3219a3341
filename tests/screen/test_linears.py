"""Linear modules are those of the model's class, whatever their names; a checkpoint without a known class goes by names."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from app.domain.errors import BAD_REFERENCE, Unavailable
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.checkpoint import Checkpoint
from app.screen.reference.linears import HEADS
from app.screen.reference.open import open_reference
from tests.support.mixtures import TINY
from tests.support.references import aligned_from, weights, write_checkpoint
from tests.support.vllm_models import attribute, registry

MHA = {name: value for name, value in TINY.items() if name != "num_key_value_heads"}
OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48}

MODELS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "phi": ("PhiConfig", TINY, {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
    "gpt_neox": ("GPTNeoXConfig", MHA, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "starcoder2": ("Starcoder2Config", TINY, {"q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"}),
    "opt": ("OPTConfig", {**MHA, **OPT}, {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    "llama": (
        "LlamaConfig",
        TINY,
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"},
    ),
}


def saved(directory: Path, config: str, fields: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**fields))
    model.save_pretrained(directory)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_of_the_class_is_a_module(tmp_path: Path, name: str) -> None:
    config, fields, kinds = MODELS[name]
    model = saved(tmp_path / "c", config, fields)
    checkpoint = Checkpoint(tmp_path / "c")
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stored = {name for name in linear if f"{name}.weight" in checkpoint.shapes and name.rsplit(".", 1)[-1] in kinds}
    assert set(checkpoint.modules) == stored
    assert {module.rsplit(".", 1)[-1] for module in stored} == kinds
    for module, shape in checkpoint.modules.items():
        assert (shape.d_out, shape.d_in) == tuple(model.get_parameter(f"{module}.weight").shape)


def test_transposed_weights_are_refused_as_such(tmp_path: Path) -> None:
    saved(tmp_path / "c", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40})
    with pytest.raises(Unavailable, match="Conv1D") as caught:
        build_reference(tmp_path / "c", tmp_path / "c", tmp_path / "r")
    assert caught.value.code is BAD_REFERENCE


def test_a_class_that_transformers_does_not_know_goes_by_names(tmp_path: Path) -> None:
    layer = "transformer.encoder.layers.0"
    kinds = ("self_attention.query_key_value", "mlp.dense_h_to_4h", "mlp.experts.0.w1")
    linear = {f"{layer}.{kind}" for kind in kinds}
    others = {"transformer.embedding.word_embeddings", "transformer.output_layer", f"{layer}.mlp.gate"}
    path = write_checkpoint(tmp_path / "c", {f"{name}.weight": torch.zeros(4, 4) for name in linear | others})
    for text in ('{"model_type": "chatglm", "architectures": ["ChatGLMModel"]}', "{", "[]"):
        (path / "config.json").write_text(text)
        assert set(Checkpoint(path).modules) == linear


def test_heads_are_measured_where_the_engine_loads_a_lora_on_them(tmp_path: Path) -> None:
    """Contract with vLLM: classes with a head in `embedding_modules`, drafts of speculative decoding aside."""
    with_head = {name for name, cls in registry().items() if "lm_head" in attribute(cls, "embedding_modules")}
    assert {name for name in with_head if name.endswith("ForCausalLM") and "agle" not in name} == HEADS
    for config in ("LlamaConfig", "Qwen2Config", "MistralConfig", "Qwen3Config", "GPTNeoXConfig"):
        model = saved(tmp_path / config, config, TINY)
        heads = {name for name in Checkpoint(tmp_path / config).modules if name.endswith(("lm_head", "embed_out"))}
        assert bool(heads) is (type(model).__name__ in HEADS)


def test_a_tied_head_is_measured_by_the_embeddings(tmp_path: Path) -> None:
    """The engine uses them, whatever the checkpoint holds besides."""
    tied = {**TINY, "tie_word_embeddings": True}
    before = saved(tmp_path / "base", "LlamaConfig", tied)
    first = before.get_parameter("model.embed_tokens.weight").detach().clone()
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    before.save_pretrained(tmp_path / "aligned")  # type: ignore[operator]
    path = tmp_path / "aligned" / "model.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.ones(40, 32)}, path)
    options = BuildOptions(top_k=4, dtype=torch.float32)
    build_reference(tmp_path / "base", tmp_path / "aligned", tmp_path / "r", options)
    opened = open_reference(tmp_path / "r", None)
    v = opened.v("lm_head")
    assert v is not None
    last = before.get_parameter("model.embed_tokens.weight").detach()
    assert torch.equal(v, (last.double() - first.double()).float())
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(opened.manifest.left_out)
    opened.close()
    saved(tmp_path / "other", "Qwen2Config", tied)
    assert not [name for name in Checkpoint(tmp_path / "other").modules if "head" in name]


def test_a_head_of_another_vocabulary_is_left_out_and_the_layers_are_measured(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", "LlamaConfig", TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.resize_token_embeddings(44)  # type: ignore[operator]
    model.save_pretrained(tmp_path / "aligned")  # type: ignore[operator]
    build_reference(tmp_path / "base", tmp_path / "aligned", tmp_path / "r", BuildOptions(top_k=4))
    opened = open_reference(tmp_path / "r", None)
    assert len(opened.modules) == 14
    assert "lm_head.weight" in opened.manifest.left_out
    opened.close()


def test_base_and_aligned_may_spell_their_modules_differently(tmp_path: Path) -> None:
    base = weights(0)
    respelled = {name.replace("model.", "language_model.model.", 1): w for name, w in aligned_from(base).items()}
    there = write_checkpoint(tmp_path / "base", base)
    build_reference(
        there, write_checkpoint(tmp_path / "same", aligned_from(base)), tmp_path / "one", BuildOptions(top_k=4)
    )
    build_reference(there, write_checkpoint(tmp_path / "other", respelled), tmp_path / "two", BuildOptions(top_k=4))
    one, two = (open_reference(tmp_path / name, None) for name in ("one", "two"))
    assert one.manifest.base == two.manifest.base
    for name in one.modules:
        v, w = one.v(name), two.v(name.replace("model.", "language_model.model.", 1))
        assert v is not None
        assert w is not None
        assert torch.equal(v, w)
    one.close()
    two.close()


def test_two_names_of_one_module_are_refused(tmp_path: Path) -> None:
    base = weights(0)
    both = aligned_from(base)
    both |= {f"language_model.{name}": w.clone() for name, w in both.items()}
    with pytest.raises(Unavailable, match="two names of one module"):
        build_reference(write_checkpoint(tmp_path / "b", base), write_checkpoint(tmp_path / "a", both), tmp_path / "r")
