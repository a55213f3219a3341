"""The real vLLM stopped, hung, lying and killed at the worst moments, behind a whole gateway; two deaths, one engine.

Whatever it does: a request is answered by the adapter it named or with 503 and Retry-After, never by another adapter or
the served model; and afterwards every adapter is there again, with the answers it gave before.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from app.domain.lora import Shape
from app.load.client import engine as engine_module
from app.load.client.engine import HttpEngine
from app.load.embedded import supervisor as embedded_module
from app.load.reconcile import hung as hung_module
from app.screen.reference.build import BuildOptions, build_reference
from app.store.audit.audit import Promise
from tests.support import tiny_model
from tests.support.audited import rested
from tests.support.engine import START_S, LiveEngine
from tests.support.gateway import Running, gateway
from tests.support.references import aligned_from, weights, write_checkpoint

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PATIENCE_S: Final = 3.0
"""Seconds after which a silent engine counts as away; some eight until it is killed. In service: 10, two minutes."""

ADAPTERS: Final = {"one": 1, "two": 2}
BUSY: Final = re.compile(rb"^vllm:num_requests_running{[^}]*} [1-9]", re.MULTILINE).search

MODEL: Final = tiny_model.MODEL_NAME


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with the tiny Llama's shapes."""
    at = tmp_path_factory.mktemp("tiny-llama-reference")
    places = {"q_proj": "self_attn", "v_proj": "self_attn", "up_proj": "mlp"}
    shapes = {f"{places[kind]}.{kind}": Shape(*shape) for kind, shape in tiny_model.SHAPES.items()}
    base = weights(0, layers=tiny_model.LAYERS, shapes=shapes, hidden=tiny_model.HIDDEN)
    pair = write_checkpoint(at / "base", base), write_checkpoint(at / "aligned", aligned_from(base))
    build_reference(*pair, at / "reference", BuildOptions())
    return at / "reference"


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CONTROL_S", PATIENCE_S)
    monkeypatch.setattr(embedded_module, "HEALTH_S", 1.0)
    monkeypatch.setattr(embedded_module, "HEALTH_MISSES", 2)
    monkeypatch.setattr(hung_module, "LOOK_S", 0.5)
    monkeypatch.setattr(hung_module, "PROBE_S", 1.0)


@pytest_asyncio.fixture
async def running(engine: LiveEngine, reference: Path, tmp_path: Path, _impatient: None) -> AsyncIterator[Running]:
    """A gateway on the session's engine; the engine is left without adapters."""
    there: Any = SimpleNamespace(url=engine.url)
    settings = {"model": MODEL, "max_lora_rank": 8, "tau": 1e9, "max_pruned_share": 1.0, "reconcile_seconds": 0.5}
    settings["engine_silent_seconds"] = PATIENCE_S
    settings["trust_model"] = True  # the reference has the shapes of the model that is served, not its weights
    settings["base_through_noop"] = (
        True  # as with an engine of our own; without, the served model's answers mix (row 10)
    )
    async with gateway(tmp_path / "data", reference, there, **settings) as made:
        made.http.timeout = httpx.Timeout(START_S)
        yield made
    client = HttpEngine(engine.url)
    for name in await client.models() - {engine.model}:
        await client.unload(name)
    await client.close()


def parts(engine: LiveEngine, name: str, seed: int) -> Mapping[str, Any]:
    files = engine.adapter(seed)
    config, tensors = files / "adapter_config.json", files / "adapter_model.safetensors"
    return {
        "name": (None, name.encode()),
        "config": ("c", config.read_bytes()),
        "weights": ("w", tensors.read_bytes()),
    }


def wanted(model: str, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "w1 w2 w3"}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": 12, "ignore_eos": True} | more


async def ask(running: Running, model: str) -> httpx.Response:
    return await running.http.post("/v1/chat/completions", json=wanted(model))


async def published(running: Running, engine: LiveEngine) -> dict[str, str]:
    """Publish the adapters; what each of them, and the served model, answers. No two the same."""
    for name, seed in ADAPTERS.items():
        answer = await running.http.post("/adapters", files=parts(engine, name, seed))
        assert answer.status_code == 201, answer.text
    await served_model_there(running)
    said = {model: text(await ask(running, model)) for model in (MODEL, *ADAPTERS)}
    assert len(set(said.values())) == len(said), "answers that are alike tell nothing"
    return said


async def served_model_there(running: Running) -> None:
    """Until the zero adapter stands in for the served model."""
    async with asyncio.timeout(START_S):
        while away(await ask(running, MODEL)):
            await asyncio.sleep(0.1)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def away(answer: httpx.Response) -> bool:
    """Whether it was refused for now, in the one way there is."""
    if answer.status_code == 200:
        return False
    assert answer.status_code in (502, 503), answer.text  # 502: the answer under way broke off
    assert answer.status_code == 502 or int(answer.headers["retry-after"]) > 0
    return True


async def all_again(running: Running, said: Mapping[str, str]) -> int:
    """Ask all, again and again, until each answers; how often one was away. An answer is the one of before, or none."""
    refused, left, deadline = 0, dict(said), time.monotonic() + START_S
    while left:
        assert time.monotonic() < deadline, f"never again: {sorted(left)}"
        for model in tuple(left):
            answer = await ask(running, model)
            if away(answer):
                refused += 1
            else:
                assert text(answer) == left.pop(model), f"{model} was asked, another answered"
        await asyncio.sleep(0.2)
    return refused


async def test_stopped_between_requests_and_continued(running: Running, engine: LiveEngine) -> None:
    """Too short to be killed for: refused meanwhile, or answered late; nothing has to be loaded again."""
    said, generation = await published(running, engine), engine.embedded.generation
    with engine.stopped():
        asked = [asyncio.create_task(ask(running, model)) for model in said]
        await asyncio.sleep(1.0)
        assert (await running.http.get("/health")).status_code == 200
    for model, task in zip(said, asked, strict=True):
        assert away(answer := await task) or text(answer) == said[model]
    await all_again(running, said)
    assert engine.embedded.generation == generation
    await rested(running, [Promise(name, 1) for name in ADAPTERS])


async def test_a_load_that_was_said_to_be_done_and_then_undone(running: Running, engine: LiveEngine) -> None:
    """200, and not loaded any more: the engine forgets one behind our back. It is noticed by its list, not by its word."""
    said = await published(running, engine)
    behind = HttpEngine(engine.url)
    victim = next(name for name in await behind.models() if name.startswith("one@"))
    await behind.unload(victim)
    while away(answer := await ask(running, "one")):
        assert "being loaded" in answer.json()["error"]["message"]
    assert text(answer) == said["one"]
    assert victim in await behind.models()
    await behind.close()


@pytest.mark.long  # hung engines without an answer under way: tests/load/test_hung_embedded.py
async def test_hung_with_an_answer_under_way(running: Running, engine: LiveEngine) -> None:
    """Found hung, killed, started again: the stream ends with an error, all others get 503, and then what they asked."""
    said, generation = await published(running, engine), engine.embedded.generation
    lines: list[str] = []

    async def stream() -> None:
        lines.clear()
        body = wanted("one", stream=True) | {"max_tokens": 450}
        answer = await running.http.post("/v1/chat/completions", json=body)
        lines.extend(line for line in answer.text.splitlines() if line.startswith("data: {"))

    streaming = asyncio.create_task(stream())
    async with asyncio.timeout(START_S):
        while not BUSY(await running.gateway.engine.exposition()):
            if streaming.done():  # its answer was over before anybody looked
                streaming = asyncio.create_task(stream())
            await asyncio.sleep(0.01)
    with engine.stopped():
        assert await all_again(running, said) > 0, "nobody was refused: did it hang at all?"
    await streaming
    assert "error" in json.loads(lines[-1].removeprefix("data: ")), "the stream ended without saying that it broke off"
    assert engine.embedded.generation == generation + 1
    await rested(running, [Promise(name, 1) for name in ADAPTERS])


async def test_its_core_hangs_and_its_server_says_that_it_is_well(running: Running, engine: LiveEngine) -> None:
    """Somebody else's engine is not killed: new requests get 503, those that wait are answered when the core goes on."""
    said, generation = await published(running, engine), engine.embedded.generation
    with engine.stopped(but_the_server=True):
        asked = {model: asyncio.create_task(ask(running, model)) for model in said}
        async with asyncio.timeout(START_S):
            while running.gateway.reconciler.engine_up:
                await asyncio.sleep(0.05)
        assert await running.gateway.engine.healthy()
        for model in said:
            began = time.monotonic()
            answer = await ask(running, model)
            assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True), answer.text
            assert time.monotonic() - began < 1.0
        assert not any(task.done() for task in asked.values())
    for model, task in asked.items():
        assert text(await task) == said[model]
    await all_again(running, said)
    assert engine.embedded.generation == generation
    await rested(running, [Promise(name, 1) for name in ADAPTERS])


@pytest.mark.long
async def test_its_core_hangs_for_good(running: Running, engine: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the test before, but as the gateway's own engine: killed after a while, started again, filled again."""
    said, generation = await published(running, engine), engine.embedded.generation
    monkeypatch.setattr(embedded_module, "HUNG_S", PATIENCE_S)
    (reconciler,) = running.gateway.reconciler.each
    monkeypatch.setattr(engine.embedded, "hangs", reconciler.hangs)
    with engine.stopped(but_the_server=True):
        waiting = asyncio.create_task(ask(running, "one"))
        async with asyncio.timeout(START_S):
            while engine.embedded.generation == generation:
                await asyncio.sleep(0.1)
    assert away(await waiting)
    await all_again(running, said)
    assert engine.embedded.generation == generation + 1
    assert any("its core has hung for 3 s" in line for line in engine.said)
    await rested(running, [Promise(name, 1) for name in ADAPTERS])


async def test_killed_while_loading(running: Running, engine: LiveEngine) -> None:
    """The upload is kept (202), and served once the engine is back, as are those from before."""
    said, generation = await published(running, engine), engine.embedded.generation
    tried = asyncio.Event()
    load = HttpEngine.load

    async def loading(client: HttpEngine, name: str, path: Path) -> None:
        if name.startswith("late@"):
            tried.set()
        await load(client, name, path)

    with (
        pytest.MonkeyPatch.context() as patch,
        engine.stopped(but_the_server=True),
    ):  # the core sleeps, the load cannot end
        patch.setattr(HttpEngine, "load", loading)
        upload = asyncio.create_task(running.http.post("/adapters", files=parts(engine, "late", 3)))
        async with asyncio.timeout(START_S):
            await tried.wait()
        await asyncio.sleep(0.3)
        for pid in engine.processes():
            if pid != engine.embedded.pid:
                os.kill(pid, signal.SIGKILL)
    answer = await upload
    assert (answer.status_code, answer.json()["state"]) == (202, "stored"), answer.text
    assert away(await ask(running, "one"))
    await all_again(running, said)
    async with asyncio.timeout(START_S):
        while away(late := await ask(running, "late")) if await active(running, "late") else True:
            await asyncio.sleep(0.2)
    assert text(late) not in said.values()
    assert engine.embedded.generation == generation + 1
    await rested(running, [Promise(name, 1) for name in (*ADAPTERS, "late")])


async def active(running: Running, name: str) -> bool:
    return bool((await running.http.get(f"/adapters/{name}")).json()["active_version"] == 1)
