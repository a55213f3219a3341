"""The plugin in a real vLLM, beside a gateway whose own engine is another: no load is ever asked for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import tiny_model
from tests.support.gateway import Running, gateway
from tests.support.plugin_engine import PluginEngine, files, plugin_reference
from tests.support.served import on_a_port
from tests.support.simulator import Simulator

__all__ = ["plugin_reference"]

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long]


@pytest_asyncio.fixture
async def wired(plugin_reference: Path, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway whose own engine is simulated."""
    simulator = Simulator(tmp_path / "e.sock", tiny_model.MODEL_NAME)
    await simulator.start()
    served = {
        "model": tiny_model.MODEL_NAME,
        "max_lora_rank": 8,
        "max_pruned_share": 1.0,
        "tau": 1e9,
        "reject_tau": 1e9,
    }
    async with gateway(tmp_path / "data", plugin_reference, simulator, **served) as running:
        yield running
    await simulator.stop()


@pytest.fixture
def started(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Callable[[str], PluginEngine]]:
    engines: list[PluginEngine] = []

    def start(url: str) -> PluginEngine:
        engines.append(PluginEngine(tmp_path / f"engine-{len(engines)}", tiny_model_dir, url))
        engines[-1].start()
        return engines[-1]

    (tmp_path / "engine-0").mkdir()
    yield start
    for engine in engines:
        engine.kill()
        engine.http.close()


async def test_an_engine_serves_what_the_gateway_screened_and_nothing_else(
    wired: Running, started: Callable[[str], PluginEngine], tiny_adapter: Callable[[int], Path]
) -> None:
    digests = {}
    for name, seed in (("bard", 1), ("other", 2)):
        pushed = await wired.http.post("/adapters", files=files(name, tiny_adapter(seed)))
        assert pushed.status_code == 201, pushed.text
        digests[name] = pushed.json()["digest"]
    async with on_a_port(wired) as port:
        engine = await asyncio.to_thread(started, f"http://127.0.0.1:{port}")
        await asyncio.to_thread(_serves_the_screened_only, engine, digests, tiny_adapter(1))
        await asyncio.to_thread(_refuses_what_was_tampered_with, engine, digests, wired.data / "artefacts")
        await asyncio.to_thread(_survives_a_restart, engine, digests)


def _serves_the_screened_only(engine: PluginEngine, digests: dict[str, str], folder: Path) -> None:
    said = {model: engine.says(model) for model in ("bard@1", f"bard@{digests['bard'][:12]}", tiny_model.MODEL_NAME)}
    assert said["bard@1"] == said[f"bard@{digests['bard'][:12]}"] != said[tiny_model.MODEL_NAME]
    for unknown in ("bard", "bard@2", "nobody@1", "../../bard@1", f"bard@{'0' * 12}", str(folder)):
        assert engine.ask(unknown).status_code == 404, unknown
    refused = engine.http.post("/v1/load_lora_adapter", json={"lora_name": "mine", "lora_path": str(folder)})
    assert refused.status_code == 404
    assert engine.ask("mine").status_code == 404
    assert engine.names() >= {f"bard@{digests['bard'][:12]}"}
    assert not {name for name in engine.names() if "mine" in name or "nobody" in name}


def _refuses_what_was_tampered_with(engine: PluginEngine, digests: dict[str, str], store: Path) -> None:
    weights = store / digests["other"] / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = engine.ask("other@1")
    assert refused.status_code == 502, refused.text
    assert engine.http.get("/health").status_code == 200
    weights.write_bytes(whole)
    assert engine.says("other@1") != engine.says("bard@1")


def _survives_a_restart(engine: PluginEngine, digests: dict[str, str]) -> None:
    before = engine.says("bard@1")
    kept = (engine.cache / digests["bard"] / "adapter_model.safetensors").stat().st_ino
    engine.kill()
    engine.start()
    assert engine.names() == {tiny_model.MODEL_NAME}
    assert engine.says("bard@1") == before
    assert (engine.cache / digests["bard"] / "adapter_model.safetensors").stat().st_ino == kept
