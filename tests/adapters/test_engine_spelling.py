"""Contract with vLLM: whatever an upload's spelling, the engine's own loader reads the artefact's names as its modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.models.utils import WeightsMapper

from app.domain.lora import ServingDtype, Shape, TargetModel
from app.prune.canonical import KEY_PREFIX, config_bytes
from tests.support.adapters import Upload, key
from tests.support.vllm_models import mapper

TAIL = "layers.0.self_attn.q_proj"
NEW, HUB, PLAIN = "model.language_model", "language_model.model", "model"

CLASSES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("gemma3_mm", "Gemma3ForConditionalGeneration", HUB, (NEW, HUB)),
    ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", PLAIN, (NEW, HUB, PLAIN)),
    ("llava", "LlavaForConditionalGeneration", HUB, (NEW, HUB)),
    ("mistral3", "Mistral3ForConditionalGeneration", HUB, (NEW, HUB, PLAIN)),
    ("gemma4_mm", "Gemma4ForConditionalGeneration", NEW, (NEW, HUB, PLAIN)),
    ("qwen3_vl", "Qwen3VLForConditionalGeneration", NEW, (NEW, HUB)),  # and Qwen3.5, which derives from it
    ("nemotron_h", "NemotronHForCausalLM", "backbone", ("backbone", PLAIN)),
]
"""Class of vLLM: module, name, the decoder's prefix in the hub's checkpoint, and the prefixes that adapters have."""


def mapper_of(module: str, name: str) -> WeightsMapper:
    """The class's own mapper."""
    found = mapper(name)
    assert found is not None, f"{module}.{name}"
    return found


def engine_names(directory: Path, mapper: Any) -> set[str]:
    helper = PEFTHelper.from_local_dir(str(directory), None)
    loaded = LoRAModel.from_local_checkpoint(
        str(directory), {"q_proj"}, helper, lora_model_id=1, device="cpu", weights_mapper=mapper
    )
    return set(loaded.loras)


@pytest.mark.parametrize(("module", "name", "hub", "spellings"), CLASSES, ids=[one[1] for one in CLASSES])
def test_the_engine_reads_every_spelling_as_its_own_module(
    tmp_path: Path, module: str, name: str, hub: str, spellings: tuple[str, ...]
) -> None:
    renames = mapper_of(module, name).get_rename_mapper()
    mapped = renames.map_name(f"{hub}.{TAIL}.weight")
    assert mapped is not None
    served = mapped.removesuffix(".weight")
    target = TargetModel("served", {f"{hub}.{TAIL}": Shape(16, 16)}, ServingDtype.FLOAT32, 8)
    for spelling in spellings:
        tensors = {
            key(f"{spelling}.{TAIL}", side): torch.ones(4, 16) if side == "A" else torch.ones(16, 4) for side in "AB"
        }
        (lora,) = Upload(target, Upload.valid().config, tensors).validate().modules
        written = tmp_path / spelling
        written.mkdir()
        (written / "adapter_config.json").write_bytes(config_bytes((lora.name,), lora.rank, target))
        sides = {"A": lora.a, "B": lora.b}
        save_file(
            {f"{KEY_PREFIX}{lora.name}.lora_{side}.weight": tensor for side, tensor in sides.items()},
            written / "adapter_model.safetensors",
        )
        assert engine_names(written, renames) == {served}
