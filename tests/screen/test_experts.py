"""Experts of a mixture are measured matrix by matrix, whichever way a checkpoint holds them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from app.domain.digest import Digest
from app.domain.errors import BAD_REFERENCE, Unavailable
from app.domain.experts import layers_of
from app.domain.lora import Shape
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.checkpoint import Checkpoint
from app.screen.reference.experts import STACKED_ONLY
from app.screen.reference.open import Reference, open_reference
from app.screen.served import difference
from tests.support.mixtures import MIXTURES, by_expert, fused, made, split
from tests.support.vllm_models import attribute, registry

OPTIONS = BuildOptions(top_k=4, dtype=torch.float32)


def opened(base: Path, aligned: Path, out: Path) -> Reference:
    build_reference(base, aligned, out, OPTIONS)
    return open_reference(out, None)


def matrices(model: nn.Module, name: str) -> dict[str, Tensor]:
    return split(model.state_dict(), name)


@pytest.mark.parametrize("base_as", [by_expert, fused])
@pytest.mark.parametrize("aligned_as", [by_expert, fused])
@pytest.mark.parametrize("name", MIXTURES)
def test_v_of_each_expert_is_its_own_difference(tmp_path: Path, name: str, base_as: Any, aligned_as: Any) -> None:
    base, aligned = made(name)
    reference = opened(base_as(base, tmp_path / "base"), aligned_as(aligned, tmp_path / "aligned"), tmp_path / "r")
    before, after = matrices(base, name), matrices(aligned, name)
    assert len(after) == 2 * 3 * 3
    assert after.keys() == {module for module in reference.modules if ".experts." in module}
    for module, weight in after.items():
        v = reference.v(module)
        assert v is not None
        assert torch.equal(v, (weight.double() - before[module].double()).float())
    reference.close()


def test_blocks_of_rows_change_no_value_of_an_expert(tmp_path: Path) -> None:
    for name in ("qwen3_moe", "llama4"):
        model, _ = made(name)
        checkpoint = Checkpoint(fused(model, tmp_path / name))
        for module, weight in matrices(model, name).items():
            for rows in (1, 5, 1000):
                assert torch.equal(torch.cat(list(checkpoint.rows(checkpoint.weight(module), rows))), weight)
        checkpoint.close()


def test_a_fused_model_is_known_as_the_references_own(tmp_path: Path) -> None:
    base, aligned = made("qwen3_moe")
    there = fused(aligned, tmp_path / "aligned")
    reference = opened(fused(base, tmp_path / "base"), there, tmp_path / "r")
    assert difference(there, reference.manifest, tmp_path / "cache") is None
    assert difference(tmp_path / "base", reference.manifest, tmp_path / "cache") is not None
    assert not [name for name in reference.manifest.left_out if "experts" in name]
    reference.close()


def test_an_expert_stored_twice_is_refused(tmp_path: Path) -> None:
    model, _ = made("qwen3_moe")
    directory = fused(model, tmp_path / "c")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    tensors["model.layers.0.mlp.experts.1.up_proj.weight"] = torch.zeros(24, 32)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(Unavailable, match=r"experts\.1\.up_proj is also a part"):
        _ = Checkpoint(directory).modules


def test_fused_tensors_of_other_shapes_are_left_out(tmp_path: Path) -> None:
    model, _ = made("qwen3_moe")
    directory = fused(model, tmp_path / "c")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors[name] = torch.zeros(3, 40, 32)
    save_file(tensors, directory / "model.safetensors")
    checkpoint = Checkpoint(directory)
    assert name in checkpoint.left_out
    assert not [module for module in checkpoint.modules if "layers.0.mlp.experts" in module]


def test_experts_of_prediction_layers_are_left_out(tmp_path: Path) -> None:
    model, _ = made("qwen3_moe")
    directory = fused(model, tmp_path / "c")
    tensors = {key.replace("model.layers.1.", "mtp.layers.0."): w.contiguous() for key, w in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors")
    assert not [module for module in Checkpoint(directory).modules if "mtp" in module]


def test_some_experts_of_a_layer_cannot_be_chosen(tmp_path: Path) -> None:
    base, aligned = (by_expert(model, tmp_path / str(i)) for i, model in enumerate(made("qwen3_moe")))
    with pytest.raises(Unavailable, match="all experts of a layer or none") as caught:
        build_reference(base, aligned, tmp_path / "r", BuildOptions(modules="*experts.1.*"))
    assert caught.value.code is BAD_REFERENCE
    build_reference(base, aligned, tmp_path / "r", BuildOptions(top_k=4, modules="*self_attn*"))
    build_reference(base, aligned, tmp_path / "without", BuildOptions(top_k=4, experts=False))
    reference = open_reference(tmp_path / "without", None)
    assert not [name for name in reference.modules if ".experts." in name]
    assert [name for name in reference.manifest.left_out if ".experts." in name]
    reference.close()


@pytest.mark.parametrize("architecture", sorted(STACKED_ONLY))
def test_experts_that_the_engine_reads_from_stacked_tensors_are_so_measured(tmp_path: Path, architecture: str) -> None:
    """Gate and up are one matrix; experts that the checkpoint holds one by one are left out."""
    model, _ = made("qwen3_moe")
    found = []
    for save in (by_expert, fused):
        directory = save(model, tmp_path / save.__name__)
        (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        checkpoint = Checkpoint(directory)
        found.append({name: shape for name, shape in checkpoint.modules.items() if ".experts." in name})
        assert len(checkpoint.modules) - len(found[-1]) == 2 * 4
        assert bool(found[-1]) is not bool([name for name in checkpoint.left_out if ".experts." in name])
    assert not found[0]
    kinds = (("gate_up_proj", Shape(48, 32)), ("down_proj", Shape(32, 24)))
    path = "model.layers.{}.mlp.experts.{}.{}"
    assert found[1] == {path.format(i, e, kind): shape for i in range(2) for e in range(3) for kind, shape in kinds}


def test_the_list_of_those_is_that_of_the_engines_classes() -> None:
    """Contract with vLLM: its classes with `is_3d_moe_weight`, by the names of its registry."""
    stacked = {name for name, cls in registry().items() if attribute(cls, "is_3d_moe_weight") == "True"}
    assert stacked == STACKED_ONLY


def test_layers_are_those_with_every_matrix_of_every_expert() -> None:
    into, out = Shape(24, 32), Shape(32, 24)
    whole = {f"a.experts.{i}.{kind}": out if kind == "w2" else into for i in range(2) for kind in ("w1", "w2", "w3")}
    found = layers_of({**whole, "a.q_proj": into, "a.shared_experts.up_proj": into})
    assert list(found) == ["a.experts"]
    assert (found["a.experts"].count, found["a.experts"].width, found["a.experts"].inner) == (2, 32, 24)
    without = {name: shape for name, shape in whole.items() if name != "a.experts.0.w3"}
    odd = {**whole, "a.experts.1.w3": Shape(23, 32)}
    for modules in (without, odd, {"a.experts.0.up_proj": into, "a.experts.0.down_proj": out}):
        assert layers_of(modules)["a.experts"].kinds is None


def test_digests_of_both_layouts_differ(tmp_path: Path) -> None:
    """A digest is of a checkpoint's tensors as they are stored."""
    base, aligned = made("qwen3_moe")
    one = opened(by_expert(base, tmp_path / "a"), by_expert(aligned, tmp_path / "b"), tmp_path / "one")
    two = opened(fused(base, tmp_path / "c"), fused(aligned, tmp_path / "d"), tmp_path / "two")
    assert isinstance(one.manifest.aligned, Digest)
    assert one.manifest.aligned != two.manifest.aligned
    one.close()
    two.close()
