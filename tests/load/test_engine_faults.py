"""The engine's client under faults (hostile.md R09, R10, F06): every one ends in one of two errors, or in the truth."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, Code, Unavailable
from app.load.client import engine as engine_module
from app.load.client.engine import HttpEngine, words
from app.load.client.probe import probe
from tests.support.simulator import MODEL, Simulator

Adapter = Callable[[int], Path]
NAME = "a@000000000001"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CONTROL_S", 0.3)
    monkeypatch.setattr(engine_module, "LOAD_S", 0.3)
    monkeypatch.setattr(engine_module, "SILENCE_S", 0.3)


@pytest.mark.parametrize("fault", ["reset", "hang", "500", "garbage"])
async def test_a_list_that_cannot_be_had_is_an_engine_that_is_away(
    simulator: Simulator, simulated_client: HttpEngine, fault: str
) -> None:
    simulator.faults["models"] = fault
    with pytest.raises(Unavailable) as caught:
        await simulated_client.models()
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_an_engine_that_does_not_listen_is_away(simulator: Simulator, simulated_client: HttpEngine) -> None:
    await simulator.stop()
    with pytest.raises(Unavailable, match="not running or not reachable") as caught:
        await simulated_client.models()
    assert caught.value.code is ENGINE_UNAVAILABLE
    assert not await simulated_client.healthy()


@pytest.mark.parametrize("fault", ["500-though-loaded", "reset-though-loaded"])
@pytest.mark.ruling("R10")
async def test_an_error_although_it_was_loaded_is_success(
    simulator: Simulator, simulated_client: HttpEngine, tiny_adapter: Adapter, fault: str
) -> None:
    simulator.faults["load"] = fault
    await simulated_client.load(NAME, tiny_adapter(1))
    assert simulator.loaded == {NAME: str(tiny_adapter(1))}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("lie", LOAD_FAILED),
        ("500", LOAD_FAILED),
        ("garbage", LOAD_FAILED),
        ("reset", ENGINE_UNAVAILABLE),
        ("hang", ENGINE_UNAVAILABLE),
    ],
)
@pytest.mark.ruling("R10")
async def test_a_load_that_did_not_happen_is_an_error(
    simulator: Simulator, simulated_client: HttpEngine, tiny_adapter: Adapter, fault: str, code: Code
) -> None:
    simulator.faults["load"] = fault
    with pytest.raises(Unavailable) as caught:
        await simulated_client.load(NAME, tiny_adapter(1))
    assert caught.value.code is code


async def test_a_500_from_an_engine_with_a_dead_core_is_not_the_adapters_fault(
    simulator: Simulator, simulated_client: HttpEngine, tiny_adapter: Adapter
) -> None:
    simulator.faults |= {"load": "500", "health": "503"}
    with pytest.raises(Unavailable) as caught:
        await simulated_client.load(NAME, tiny_adapter(1))
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_an_adapter_with_nan_fails_the_probe(
    simulator: Simulator, simulated_client: HttpEngine, tiny_adapter: Adapter
) -> None:
    simulator.broken_names.add(NAME)
    await simulated_client.load(NAME, tiny_adapter(1))
    with pytest.raises(Unavailable, match="not finite") as caught:
        await probe(simulated_client, NAME)
    assert caught.value.code is LOAD_FAILED


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("other", LOAD_FAILED),
        ("garbage", LOAD_FAILED),
        ("500", LOAD_FAILED),
        ("reset", ENGINE_UNAVAILABLE),
        ("hang", ENGINE_UNAVAILABLE),
        ("cut", ENGINE_UNAVAILABLE),
    ],
)
async def test_a_probe_without_a_good_answer_fails(
    simulator: Simulator, simulated_client: HttpEngine, fault: str, code: Code
) -> None:
    simulator.faults["completions"] = fault
    with pytest.raises(Unavailable) as caught:
        await probe(simulated_client, MODEL)
    assert caught.value.code is code


async def test_an_answer_over_the_limit_is_not_read(simulator: Simulator, simulated_client: HttpEngine) -> None:
    response = await simulated_client.post("/v1/completions", b'{"model":"tiny-llama","prompt":[1]}')
    with pytest.raises(Unavailable, match="over 10 bytes"):
        await response.read(10)
    response.close()


async def test_many_requests_share_few_connections(simulator: Simulator) -> None:
    client = HttpEngine(simulator.url, connections=2)
    await asyncio.gather(*(client.models() for _ in range(50)))
    await client.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"no","code":400}}', "no"),
        (b'{"error":"no"}', "no"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"{}", "the engine gave no reason"),
        (b'{"error":{"message":""}}', "the engine gave no reason"),
        (b'{"message":"no"}', "no"),
        (b"plain text", "plain text"),
        (b"", "the engine gave no reason"),
        (b"\xff" * 5000, "\ufffd" * 300),
        (b"[" * 100_000, "[" * 300),
    ],
)
def test_the_engines_words_are_found_whatever_it_says(body: bytes, said: str) -> None:
    assert words(body) == said


async def test_a_server_that_answers_to_any_path_is_not_taken_for_one_in_development(
    simulator: Simulator, simulated_client: HttpEngine
) -> None:
    assert await simulated_client.objection() is None
    simulator.developers = True
    assert await simulated_client.objection() is not None
    simulator.faults["is_sleeping"] = "garbage"
    assert await simulated_client.objection() is None
