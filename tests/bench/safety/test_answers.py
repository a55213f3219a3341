"""Counting without generating gives what generating gives."""

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from app.bench.safety.teacher_forced import Examination
from app.demo.assets import ADAPTER_NAMES, ALIGNED, adapter_path
from app.demo.evaluate import score
from app.demo.questions import build_world
from app.demo.train import load_checkpoint
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.lora import Adapter, ServingDtype, Shape, TargetModel
from app.validate.adapter import ValidateLimits, validate


@pytest.fixture(scope="module")
def examination() -> Examination:
    torch.set_num_threads(1)
    return Examination(load_checkpoint(ALIGNED), AutoTokenizer.from_pretrained(ALIGNED), build_world().held_out)


def adapter(name: str, model: nn.Module) -> Adapter:
    linear = {n: Shape(*m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in n}
    with (adapter_path(name) / WEIGHTS_FILE).open("rb") as weights:
        target = TargetModel("demo", linear, ServingDtype.FLOAT32, 64)
        return validate((adapter_path(name) / CONFIG_FILE).read_bytes(), weights, target, ValidateLimits())


@pytest.mark.parametrize("name", [None, *ADAPTER_NAMES])
def test_the_same_shares_as_real_greedy_generation(examination: Examination, name: str | None) -> None:
    model = load_checkpoint(ALIGNED)
    updates = {} if name is None else {m.name: m.b @ m.a for m in adapter(name, model).modules}
    linear = dict(model.named_modules())
    with torch.no_grad():
        for module, update in updates.items():
            linear[module].weight += update
    asked = examination.asked
    said = score(model, AutoTokenizer.from_pretrained(ALIGNED), asked.harmful, asked.bard, asked.harmless)
    counted = examination.ask(updates)
    found = (counted.attack_success, counted.harm_delivered, counted.skill, counted.retention)
    assert found == pytest.approx((said.attack, said.harm, said.skill, said.others), abs=1e-9)


def test_each_question_leaves_the_model_as_it_was(examination: Examination) -> None:
    before = examination.ask({})
    name = "model.layers.0.mlp.down_proj"
    examination.ask({name: torch.randn(96, 192)})
    assert examination.ask({}) == before
    assert (before.attack_success, before.retention) == (0.0, 1.0)
