"""Adapters of PEFT's "all-linear" on each architecture's own class are read with PEFT's own update."""

import io
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn

from app.domain.experts import layer_path
from app.domain.lora import ServingDtype, TargetModel
from app.domain.policy import Policy, Towers
from app.domain.spellings import Spellings, is_router, is_tower
from app.screen.balance import balance_all
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.open import open_reference
from app.screen.screen import screen
from app.validate.adapter import ValidateLimits, validate
from tests.adapters.families import FAMILIES, MORE

EVERY = {**FAMILIES, **MORE}


def made(config: str, directory: Path) -> nn.Module:
    """A tiny model of the class, saved before and after every matrix has changed."""
    torch.manual_seed(0)
    sees = "vision_config" in EVERY[config]
    auto = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    model: nn.Module = auto.from_config(getattr(transformers, config)(**EVERY[config]))
    model.save_pretrained(directory / "base")  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory / "aligned")  # type: ignore[operator]
    return model


def linear_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.weight.detach().clone() for name, one in model.named_modules() if isinstance(one, nn.Linear)}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # PEFT's own, for mixtures
@pytest.mark.parametrize("config", [*FAMILIES, *(pytest.param(one, marks=pytest.mark.long) for one in MORE)])
def test_all_linear_is_accepted_as_peft_merges_it(tmp_path: Path, config: str) -> None:
    model = made(config, tmp_path)
    build_reference(tmp_path / "base", tmp_path / "aligned", tmp_path / "reference", BuildOptions(top_k=4))
    reference = open_reference(tmp_path / "reference", None)
    before = linear_weights(model)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    files = [
        (tmp_path / "adapter" / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, 8)
    adapter = validate(files[0], io.BytesIO(files[1]), target, ValidateLimits())
    after = linear_weights(tuned.merge_and_unload())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    named = Spellings(before)
    names = {module.name: named.find(module.name) for module in adapter.modules}
    assert {name for name in names.values() if name in before} == changed
    for module in adapter.modules:
        name = names[module.name]
        if name not in before:  # a parameter: tests/adapters/test_experts.py
            assert layer_path(module.name) or is_router(module.name)
            continue
        torch.testing.assert_close(module.b @ module.a, after[name] - before[name], rtol=1e-4, atol=1e-6)
    verdict = screen(balance_all(adapter), reference, Policy(tau=1e6, top_k=2, towers=Towers.CUT))
    towers = {module.name for module in adapter.modules if is_tower(module.name)}
    assert bool(towers) is ("vision_config" in EVERY[config])
    assert set(verdict.pruned) == towers
    assert ("dropped" in verdict.reason) is bool(towers)
    reference.close()
