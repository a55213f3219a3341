"""What the gateway relies on of an engine, asked of the real vLLM 0.32 and of the simulator that stands in for it."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import LOAD_FAILED, Unavailable
from app.load.client.probe import probe
from app.load.reconcile.hung import PROGRESS
from tests.support.engine import AnyEngine, LiveEngine
from tests.support.simulator import Simulator
from tests.support.waiting import STUCK_S

CHAT = "/v1/chat/completions"
LIMIT = 1 << 20


async def ask(any_engine: AnyEngine, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    response = await any_engine.client.post(path, json.dumps(fields).encode())
    try:
        found = json.loads(await response.read(LIMIT))
        assert isinstance(found, dict)
        return response.status, found
    finally:
        response.close()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 5} | more


async def test_it_is_healthy_and_lists_its_own_model(any_engine: AnyEngine) -> None:
    assert await any_engine.client.healthy()
    assert await any_engine.client.models() == {any_engine.model}
    assert await any_engine.client.objection() is None


async def test_what_was_loaded_is_listed_and_answers_under_its_name(any_engine: AnyEngine) -> None:
    await any_engine.client.load("a@000000000001", any_engine.adapter(1))
    assert await any_engine.client.models() == {any_engine.model, "a@000000000001"}
    status, said = await ask(any_engine, CHAT, **chat("a@000000000001"))
    assert (status, said["model"]) == (200, "a@000000000001")
    assert said["choices"][0]["message"]["content"]


async def test_loading_twice_and_unloading_twice_are_no_errors(any_engine: AnyEngine) -> None:
    for _ in range(2):
        await any_engine.client.load("a@000000000001", any_engine.adapter(1))
    for _ in range(2):
        await any_engine.client.unload("a@000000000001")
    assert await any_engine.client.models() == {any_engine.model}


async def test_a_directory_that_is_not_there_is_refused_with_the_engines_words(
    any_engine: AnyEngine, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="No adapter found for") as caught:
        await any_engine.client.load("gone@000000000000", tmp_path / "gone")
    assert caught.value.code is LOAD_FAILED
    assert await any_engine.client.models() == {any_engine.model}


async def test_the_probe_accepts_a_sound_adapter(any_engine: AnyEngine) -> None:
    await any_engine.client.load("a@000000000001", any_engine.adapter(1))
    await probe(any_engine.client, "a@000000000001")


async def test_an_unknown_name_is_a_404_never_the_served_model(any_engine: AnyEngine) -> None:
    status, said = await ask(any_engine, CHAT, **chat("nobody@000000000000"))
    assert (status, said["error"]["code"]) == (404, 404)


async def test_too_many_tokens_are_a_400_that_names_the_field(any_engine: AnyEngine) -> None:
    status, said = await ask(any_engine, CHAT, **chat(any_engine.model, max_tokens=100_000))
    assert (status, said["error"]["param"]) == (400, "max_tokens")


async def test_the_outermost_model_is_the_first_in_the_bytes(any_engine: AnyEngine) -> None:
    """serve/relabel.py replaces the label in the bytes; it falls back to writing anew where this does not hold."""
    response = await any_engine.client.post(CHAT, json.dumps(chat(any_engine.model)).encode())
    raw = await response.read(LIMIT)
    response.close()
    assert raw.count(f'"model":"{any_engine.model}"'.encode()) == 1


@contextmanager
def core_stopped(engine: Simulator | LiveEngine) -> Iterator[None]:
    """Nothing is computed, and the server answers."""
    if isinstance(engine, LiveEngine):
        with engine.stopped(but_the_server=True):
            yield
        return
    engine.faults["core"] = "hang"
    yield
    del engine.faults["core"]


async def test_a_core_that_hangs_shows_in_nothing_but_answers_that_do_not_come(
    any_engine: AnyEngine, engine_source: Simulator | LiveEngine
) -> None:
    """hung.py: health and list are the server's, and so is a stream's head; the core's counters stand still."""
    client = any_engine.client
    await client.load("a@000000000001", any_engine.adapter(1))
    await probe(client, "a@000000000001")

    async def progress() -> list[bytes]:
        return [line for line in (await client.exposition()).splitlines() if line.startswith(PROGRESS)]

    before = await progress()
    assert len(before) == len(PROGRESS)
    with core_stopped(engine_source):
        assert await client.healthy()
        assert await client.models() == {any_engine.model, "a@000000000001"}
        stream = await client.post(CHAT, json.dumps(chat(any_engine.model, stream=True)).encode())
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        chunks = stream.chunks()
        first = asyncio.ensure_future(anext(chunks))
        assert not (await asyncio.wait({first}, timeout=1.0))[0]
        assert client.pulse.silent_s >= 1.0
        with pytest.raises(TimeoutError):  # as a probe that is given up
            async with asyncio.timeout(0.5):
                await probe(client, any_engine.model)
        assert await progress() == before
    assert b"data: " in await first
    assert client.pulse.silent_s < 1.0
    async for _ in chunks:
        pass
    stream.close()
    async with asyncio.timeout(STUCK_S):
        while await progress() == before:
            await asyncio.sleep(0.05)


async def test_a_stream_is_labelled_chunks_then_usage_then_done(any_engine: AnyEngine) -> None:
    wanted = chat(any_engine.model, stream=True, stream_options={"include_usage": True})
    response = await any_engine.client.post(CHAT, json.dumps(wanted).encode())
    assert (response.status, response.content_type) == (200, "text/event-stream")
    events = (b"".join([chunk async for chunk in response.chunks()])).split(b"\n\n")
    response.close()
    assert all(event.startswith(b"data: ") for event in events[:-1])
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(event[6:]) for event in events[:-2]]
    assert {chunk["model"] for chunk in chunks} == {any_engine.model}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
