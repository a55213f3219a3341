"""What the installed PEFT really writes is taken, and means here what it means there."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from app.domain.lora import ServingDtype, Shape, TargetModel
from tests.support.adapters import PEFT_DEFAULTS, check

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(12, 12, bias=False), nn.Linear(12, 6, bias=False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.down_proj = nn.Linear(20, 12, bias=False)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))


class Model(nn.Module):
    """Named as a decoder names its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()
        self.config = {"model_type": "custom"}

    def prepare_inputs_for_generation(self) -> None:
        """PEFT asks for it where task_type is CAUSAL_LM."""


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_kind": {"target_modules": ["q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    "rslora": {"use_rslora": True},
    "all_linear": {"target_modules": "all-linear"},
    "patterns": {"rank_pattern": {Q: 2, V: 5}, "alpha_pattern": {Q: 3, "model.layers.1.down_proj": 7}},
    "rslora_patterns": {"use_rslora": True, "rank_pattern": {Q: 2}, "alpha_pattern": {Q: 3, V: 1}},
    "some_layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluding": {"exclude_modules": ["down_proj"]},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=list(CASES))
def test_delta_is_what_peft_merges(tmp_path: Path, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    base = Model()
    before = {name: linear.weight.detach().clone() for name, linear in linears(base).items()}
    target = TargetModel(
        "served",
        {name: Shape(weight.shape[0], weight.shape[1]) for name, weight in before.items()},
        ServingDtype.FLOAT32,
        max_rank=8,
    )
    if fields.get("target_modules") == "all-linear":  # only for transformers' own models: its list, by hand
        fields = {**fields, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 6, **fields}
    tuned = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path)
    adapter = check(
        (tmp_path / "adapter_config.json").read_bytes(), (tmp_path / "adapter_model.safetensors").read_bytes(), target
    )
    after = {name: linear.weight.detach() for name, linear in linears(tuned.merge_and_unload()).items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {module.name for module in adapter.modules} == changed
    for module in adapter.modules:
        merged = after[module.name] - before[module.name]
        torch.testing.assert_close(module.b @ module.a, merged, rtol=1e-5, atol=1e-6)


def test_the_fields_of_the_installed_peft_are_all_known(tmp_path: Path) -> None:
    """A new PEFT with a new field fails here first, and the allow-list is looked at."""
    peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(written) == set(PEFT_DEFAULTS)
    same = set(written) - {"target_modules", "inference_mode", "base_model_name_or_path", "peft_version"}
    assert {k: written[k] for k in same} == {k: PEFT_DEFAULTS[k] for k in same}
