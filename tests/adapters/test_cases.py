"""Adapters as people have them are accepted with PEFT's own update, or refused with the cause and what to do."""

import io
import json
import math
from typing import Any

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save
from torch import Tensor

from app.domain.errors import Refused
from app.domain.lora import Adapter
from app.validate.adapter import ValidateLimits, validate
from tests.adapters.cases import CASES, PEFT, Case
from tests.adapters.models import MODELS, WIDTH, served
from tests.support.adapters import PEFT_DEFAULTS

R, ALPHA = 4, 8


def config_of(case: Case) -> dict[str, Any]:
    return {**PEFT_DEFAULTS, "r": R, "lora_alpha": ALPHA, **case.config}


def rank_of(case: Case, module: str) -> int:
    return next((rank for part, rank in case.ranks.items() if part in module), int(config_of(case)["r"]))


def named(case: Case, name: str) -> str:
    for ours, theirs in case.rename:
        name = name.replace(ours, theirs)
    return name


def tensors_of(case: Case) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    found: dict[str, Tensor] = {}
    for module in MODELS[case.model]:
        if case.kinds is not None and not module.endswith(case.kinds):
            continue
        rank = rank_of(case, module)
        for side, shape in (("A", (rank, WIDTH)), ("B", (WIDTH, rank))):
            values = torch.randn(shape, generator=g, dtype=torch.float64) * (
                0.0 if "zero" in case.ranks and side == "B" else 0.1
            )
            found[named(case, f"{PEFT}{module}.lora_{side}.weight")] = (
                torch.empty(0) if case.empty else values.to(dtype)
            )
    return found | {name: torch.ones(shape) for name, shape in case.extra.items()}


def files_of(case: Case) -> tuple[bytes, bytes]:
    whole = case.whole
    config = (
        whole.encode() if isinstance(whole, str) else json.dumps(config_of(case) if whole is None else whole).encode()
    )
    return config, save(tensors_of(case)) if case.weights is None else case.weights


def read(case: Case) -> Adapter:
    config, weights = files_of(case)
    return validate(config, io.BytesIO(weights), served(case.model), ValidateLimits())


def peft_delta(case: Case, module: str, tensors: dict[str, Tensor]) -> Tensor:
    """PEFT's own update of the weight: its matching of patterns, on the module's name in the file."""
    config = config_of(case)
    name = named(case, f"{PEFT}{module}.lora_A.weight")
    a, b = (tensors[name.replace("lora_A", side)].double() for side in ("lora_A", "lora_B"))
    path = name.removeprefix(PEFT).removesuffix(".lora_A.weight")
    alphas = config["alpha_pattern"]
    alpha = alphas.get(get_pattern_key(list(alphas), path), config["lora_alpha"])
    scale: float = alpha / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
    return b @ a * scale


ACCEPTED = [case for case in CASES if case.code is None]
REFUSED = [case for case in CASES if case.code is not None]


@pytest.mark.parametrize("case", ACCEPTED, ids=[f"{case.name}: {case.what}" for case in ACCEPTED])
def test_accepted_as_peft_means_it(case: Case) -> None:
    adapter, tensors = read(case), tensors_of(case)
    assert len(adapter.modules) == len(tensors) // 2 > 0
    for module in adapter.modules:
        theirs = peft_delta(case, module.name, tensors)
        assert float((module.b.double() @ module.a.double() - theirs).abs().max()) <= 1e-6


@pytest.mark.parametrize("case", REFUSED, ids=[f"{case.name}: {case.what}" for case in REFUSED])
@pytest.mark.hostile
def test_refused_with_cause_and_remedy(case: Case) -> None:
    with pytest.raises(Refused) as caught:
        read(case)
    error = caught.value
    assert error.code.name == case.code
    said = " ".join([error.message, error.hint, *(f"{fault.message} {fault.what_to_do}" for fault in error.details)])
    for word in case.words:
        assert word in said
    assert len(error.message) <= 400
    assert error.message.isprintable()


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
