import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.domain.errors import BAD_REFERENCE, Unavailable
from app.screen.reference.checkpoint import INDEX, Checkpoint
from app.screen.reference.linears import module_of
from tests.support.references import module_names, weights, write_checkpoint


@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.31.mlp.down_proj.weight",
        "model.layers.3.self_attn.qkv_proj.weight",
        "model.layers.3.mlp.gate_up_proj.weight",
        "language_model.model.layers.2.self_attn.o_proj.weight",
        "transformer.encoder.layers.0.self_attention.query_key_value.weight",
        "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight",
        "gpt_neox.layers.0.attention.dense.weight",
        "transformer.h.3.attn.qkv_proj.weight",
        "transformer.blocks.0.attn.Wqkv.weight",
        "model.layers.0.attention.wqkv.weight",
        "model.layers.0.feed_forward.w3.weight",
        "model.layers.0.mlp.c_fc.weight",
        "model.layers.0.block_sparse_moe.experts.0.w1.weight",
        "model.layers.0.mlp.experts.3.down_proj.weight",
    ],
)
def test_linear_modules_of_decoder_layers_are_adaptable(tensor: str) -> None:
    assert module_of(tensor) == tensor.removesuffix(".weight")


@pytest.mark.parametrize(
    "tensor",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.x.self_attn.q_proj.weight",
        "transformer.h.0.attn.c_attn.weight",
        "mtp.layers.0.self_attn.q_proj.weight",
        "transformer.h.0.mlp.c_proj.weight",
        "transformer.word_embeddings.weight",
        "q_proj.weight",
    ],
)
def test_everything_else_is_not(tensor: str) -> None:
    assert module_of(tensor) is None


def test_one_file_and_many_are_the_same_checkpoint(tmp_path: Path) -> None:
    one = Checkpoint(write_checkpoint(tmp_path / "one", weights(0)))
    many = Checkpoint(write_checkpoint(tmp_path / "many", weights(0), files=3))
    assert list(one.modules) == module_names()
    assert dict(one.modules) == dict(many.modules)
    for name in one.shapes:
        assert torch.equal(one.tensor(name), many.tensor(name))
        assert one.digest(name) == many.digest(name)


def test_a_digest_tells_values_dtype_and_shape_apart(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(4, 2), "b": torch.zeros(2, 4), "c": torch.zeros(8), "d": torch.zeros(16).bfloat16()}
    directory = tmp_path / "c"
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    checkpoint = Checkpoint(directory)
    assert len({checkpoint.digest(name) for name in tensors}) == 4


def read(path: Path) -> None:
    checkpoint = Checkpoint(path)
    for name in checkpoint.shapes:
        checkpoint.tensor(name)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read(path)
    assert caught.value.code is BAD_REFERENCE
    for word in words:
        assert word in caught.value.message


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", weights(0), files=2)
    victim = path / "model-00002-of-00002.safetensors"
    victim.write_bytes(victim.read_bytes()[:-5])
    refused(path, victim.name)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", weights(0), files=2)
    (path / "model-00001-of-00002.safetensors").unlink()
    refused(path, "model-00001-of-00002.safetensors")


def test_a_tensor_the_index_promises_must_be_there(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", weights(0), files=2)
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["model.layers.7.self_attn.q_proj.weight"] = "model-00001-of-00002.safetensors"
    (path / INDEX).write_text(json.dumps(index))
    refused(path, "model.layers.7.self_attn.q_proj.weight", "model-00001")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = write_checkpoint(tmp_path / "c", weights(0), files=2)
    (path / INDEX).write_text(text)
    refused(path, INDEX)


def test_an_index_does_not_lead_out_of_the_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", weights(0), files=2)
    (path / INDEX).write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    refused(path, "outside")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(tmp_path, "no safetensors")


def test_the_same_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    refused(tmp_path, "also in")


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(torch.float8_e4m3fn, "quantised"), (torch.int8, "quantised"), (torch.int64, "I64"), (torch.float64, "F64")],
)
def test_quantised_weights_integers_and_doubles_are_refused_as_such(
    tmp_path: Path, dtype: torch.dtype, word: str
) -> None:
    save_file({"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2).to(dtype)}, tmp_path / "m.safetensors")
    refused(tmp_path, "up_proj", word)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "a/b/c"])
def test_a_directory_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(Unavailable, match="not a directory"):
        Checkpoint(name)


def test_a_hub_id_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="hub"):
        Checkpoint("nobody/nothing-of-this-name")


def test_a_file_cut_short_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    """A mapped file would kill the process here."""
    path = write_checkpoint(tmp_path / "c", weights(0))
    checkpoint = Checkpoint(path)
    name = list(checkpoint.shapes)[-1]
    with (path / "model.safetensors").open("r+b") as f:
        f.truncate(200)
    for read_it in (checkpoint.tensor, checkpoint.digest):
        with pytest.raises(Unavailable) as caught:
            read_it(name)
        assert "cut short" in caught.value.message
        assert name in caught.value.message
        assert "model.safetensors" in caught.value.message
    checkpoint.close()


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
def test_blocks_are_the_bytes_of_the_tensor_however_small(tmp_path: Path, size: int) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", weights(0, layers=1), dtype=torch.bfloat16, files=2))
    name = "model.layers.0.self_attn.k_proj.weight"
    whole = checkpoint.tensor(name)
    assert b"".join(checkpoint.blocks(name, size)) == whole.view(torch.uint8).numpy().tobytes()
    assert torch.equal(
        torch.cat(list(checkpoint.rows(checkpoint.weight(name.removesuffix(".weight")), min(size, 100)))), whole
    )
    checkpoint.close()


def test_what_no_module_is_made_of_is_listed(tmp_path: Path) -> None:
    tensors = weights(0, layers=1)
    tensors["model.layers.0.mlp.gate.weight"] = torch.zeros(4, 4)
    tensors["model.layers.0.mlp.experts.0.w1.weight"] = torch.zeros(4, 4)
    tensors["model.layers.0.self_attn.kv_proj.weight"] = torch.zeros(2, 4, 4)
    found = Checkpoint(write_checkpoint(tmp_path / "c", tensors)).left_out
    assert found == (
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.self_attn.kv_proj.weight",
    )


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", weights(0, layers=1)) / "model.safetensors"
    data = path.read_bytes()
    for spoiled in (b"", data[:6], b"\xff" * 8 + data[8:], data[:8] + b"x" + data[9:], data + b"more"):
        path.write_bytes(spoiled)
        refused(path.parent, "model.safetensors")
