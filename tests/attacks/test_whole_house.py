"""The rule for every hostile upload, held through the whole gateway: one refusal with its code, counted once, a version or
none, and nothing else: no artefact, no quarantine, no word to the engine, and others go on being served.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from app.domain.errors import Code
from app.domain.lora import ServingDtype
from app.screen.reference.build import BuildOptions
from tests.attacks import test_adapter_names, test_config, test_safetensors, test_tensors
from tests.support.adapters import SHAPES, Upload
from tests.support.audited import rested
from tests.support.gateway import SERVED, OpenHouse, Running, form, gateway
from tests.support.references import make_reference
from tests.support.simulator import Simulator

VALID = Upload.valid()


@pytest.fixture(scope="module")
def reference_of_the_attacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over the modules that the samples of this folder are made for."""
    return make_reference(tmp_path_factory.mktemp("attacks"), options=BuildOptions(top_k=4), shapes=SHAPES)


Sample = tuple[str, dict[str, Any], Code]


def parts(upload: Upload, name: bytes = b"mine", config: bytes | None = None, weights: bytes | None = None) -> Any:
    return {
        "name": (None, name),
        "config": ("c", upload.config_bytes if config is None else config),
        "weights": ("w", upload.weights_bytes if weights is None else weights),
    }


def samples() -> Iterator[Sample]:
    """Every upload this folder refuses, but for those of another serving dtype."""
    for name, data, code in test_safetensors.ATTACKS:
        yield name, parts(VALID, weights=data), code
    for name, upload, code in test_tensors.ATTACKS:
        if upload.model.dtype is ServingDtype.FLOAT32:
            yield name, parts(upload), code
    for name, fields, code in test_config.FIELDS:
        yield name, parts(VALID.having(**fields)), code
    for name, config, code in test_config.RAW:
        yield name, parts(VALID, config=config), code
    for name, adapter, code in test_adapter_names.NAMES:
        yield name, parts(VALID, name=adapter), code


def counted(text: str) -> float:
    return sum(float(n) for n in re.findall(r"^gateway_rejected_total\{.*\} (\S+)$", text, re.MULTILINE))


async def chats(running: Running, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


async def test_every_sample_is_refused_once_and_touches_nothing(
    tmp_path: Path, reference_of_the_attacks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    simulator = Simulator(tmp_path / "e.sock", SERVED)
    await simulator.start()
    async with gateway(tmp_path / "data", reference_of_the_attacks, simulator, max_lora_rank=8) as running:
        assert (await running.http.post("/adapters", files=parts(VALID, b"healthy"))).status_code == 201
        loads, artefacts = list(simulator.loads), set((running.data / "artefacts").iterdir())
        before = counted((await running.http.get("/metrics")).text)
        for number, (name, sent, code) in enumerate(samples(), 1):
            answer = await running.http.post("/adapters", files=sent)
            assert (answer.status_code, answer.json()["error"]["code"]) == (code.status, code.name), (name, answer.text)
            assert 400 <= answer.status_code < 500
            assert len(answer.content) < 10_000, name
            assert not list((running.data / "quarantine").iterdir()), name
            assert counted((await running.http.get("/metrics")).text) == before + number, name
        assert number > 150
        assert set((running.data / "artefacts").iterdir()) == artefacts
        assert simulator.loads == loads
        assert [await chats(running, model) for model in ("healthy", "mine")] == [200, 404]
        assert (await running.http.post("/adapters", files=parts(VALID))).status_code == 201  # the slot is free
        await rested(running)
    await simulator.stop()
    said = capfd.readouterr().err
    assert "\x1b" not in said
    assert all(line.isprintable() for line in said.splitlines())


@pytest.mark.ruling("N10", "R04")
async def test_a_deleted_adapters_numbers_and_engine_names_stay_dead(running: Running) -> None:
    names, numbers = set(), []
    for _ in range(3):  # the very same bytes, each time
        version = (await running.http.post("/adapters", files=form("again"))).json()["version"]
        numbers.append(version)
        names |= set(running.simulator.loaded)
        assert [await chats(running, f"again@{n}") for n in numbers] == [404] * (len(numbers) - 1) + [200]
        assert (await running.http.delete("/adapters/again")).status_code == 204
        assert await chats(running, "again") == 404
    assert numbers == [1, 2, 3]
    assert len([name for name in names if name.startswith("again@")]) == 3
    await rested(running)


@pytest.mark.ruling("N12")
async def test_ten_thousand_unknown_names_never_reach_the_engine(running: Running) -> None:
    await running.http.post("/adapters", files=form("known"))
    running.simulator.seen.clear()
    page = len((await running.http.get("/metrics")).text)
    for number in range(10_000):
        model = (f"unknown-{number}", f"known@{number + 2}", f"known@{number:012x}")[number % 3]
        if number % 20 == 0:
            assert await chats(running, model) == 404
        else:
            with pytest.raises(Exception, match="model_not_found"):
                running.gateway.context.routing_table.resolve(model)
    assert not running.simulator.seen
    assert len((await running.http.get("/metrics")).text) < page + 2000


@pytest.mark.ruling("G10", "K21")
@pytest.mark.parametrize("dtype", [ServingDtype.FLOAT16, ServingDtype.BFLOAT16], ids=lambda d: d.value)
async def test_what_is_measured_is_what_is_served(open_gateway: OpenHouse, dtype: ServingDtype) -> None:
    """float32 that the cast changes scores as its cast does, and is written as the same bytes."""

    fine = form("fine")
    tensors = load(fine["weights"][1])
    kind = getattr(torch, dtype.value)
    assert any(not torch.equal(one.to(kind).to(one.dtype), one) for one in tensors.values())
    doubled = {name: (2 * one if ".lora_B." in name else one) for name, one in tensors.items()}  # alpha 8, r 4
    coarse = {name: one.to(kind) for name, one in doubled.items()}
    config = fine["config"][1].replace(b'"lora_alpha": 8', b'"lora_alpha": 4')
    assert config != fine["config"][1]
    async with open_gateway(dtype=dtype.value, tau=1e6) as running:
        first = (await running.http.post("/adapters", files=fine)).json()
        cast = {"name": (None, b"cast"), "config": ("c", config), "weights": ("w", save(coarse))}
        second = (await running.http.post("/adapters", files=cast)).json()
    assert first["digest"] == second["digest"]
    scores = [[one["scores"] for one in each["report"]["verdict"]["modules"]] for each in (first, second)]
    assert scores[0] == scores[1]


@pytest.mark.hostile("G13", "K13")
@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens", "model.norm", "model.layers.0.input_layernorm"])
async def test_what_the_reference_does_not_measure_is_not_adapted_however_little(running: Running, module: str) -> None:

    sent = form("tiny")
    extra = {
        f"base_model.model.{module}.lora_A.weight": torch.full((4, 64), 1e-6),
        f"base_model.model.{module}.lora_B.weight": torch.full((50, 4), 1e-6),
    }
    sent["weights"] = ("w", save(load(sent["weights"][1]) | extra))
    answer = await running.http.post("/adapters", files=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_module")
    assert not running.simulator.loaded
