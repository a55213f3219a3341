"""The attacker who knows the reference trains where the gateway's projection finds nothing."""

from pathlib import Path
from typing import cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from app.bench.safety.adapter_under_test import Alignment
from app.demo.evasion import KNOWS, Evasion
from app.demo.train import load_checkpoint
from app.screen.reference.build import build_reference

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def alignment(tmp_path_factory: pytest.TempPathFactory) -> Alignment:
    folder = tmp_path_factory.mktemp("pair")
    build_reference(DATA / "base", DATA / "aligned", folder / "reference")
    return Alignment(folder / "reference")


def test_nothing_is_left_where_the_gateway_looks_and_the_rest_stays(alignment: Alignment) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = cast(PeftModel, get_peft_model(load_checkpoint(DATA / "aligned"), config))
    evade = Evasion(model, alignment.reference)
    layer = model.get_submodule("base_model.model.model.layers.3.self_attn.q_proj")
    side = alignment.sides["model.layers.3.self_attn.q_proj"]
    before = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()

    evade()

    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    vectors = alignment.reference.singular_vectors("model.layers.3.self_attn.q_proj", KNOWS)
    assert float((a @ vectors.r).norm()) < 1e-5 * float(a.norm())
    assert float((vectors.u.T @ b).norm()) < 1e-5 * float(b.norm())
    inputs, outputs = vectors.r.shape[1], vectors.u.shape[1]
    elsewhere = (side.u[:, outputs:] @ side.u[:, outputs:].T, side.r[:, inputs:] @ side.r[:, inputs:].T)
    assert torch.allclose(b @ a, elsewhere[0] @ before @ elsewhere[1], atol=1e-4 * float(before.norm()))
