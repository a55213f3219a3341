"""Two real engines behind one gateway, one of them killed while it answers."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.load.fleet.fleet import Fleet
from app.load.fleet.member import CheckedEngine
from app.load.reconcile.callbacks import Callbacks
from app.serve.relay import Relay
from app.serve.routing_table import RoutingTable, Served
from app.serve.stream import Stream
from tests.support.engine import LONG_CONTEXT, LiveEngine, live_engine

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long]

NAMES = [f"a{seed}@{seed:012d}" for seed in (1, 2, 3)]
LONG = LONG_CONTEXT - 64  # tokens of an answer: tens of seconds, and far more bytes than lie in sockets on the way


@pytest.fixture(scope="module")
def second(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_adapter: Callable[[int], Path]
) -> Iterator[LiveEngine]:
    """Another engine, which the test may kill."""
    with live_engine(tmp_path_factory.mktemp("second"), tiny_model_dir, tiny_adapter, LONG_CONTEXT) as live:
        yield live


class Pair:
    """load and serve as the house wires them, over both."""

    def __init__(self, first: LiveEngine, second: LiveEngine) -> None:
        desired = {name: first.adapter(seed) for seed, name in enumerate(NAMES, 1)}
        self.routing_table = RoutingTable(first.model, loaded=lambda name: self.fleet.is_loaded(name))  # noqa: PLW0108 - bound below
        self.routing_table.replace(tuple(Served(name[:2], 1, name, name[3:], active=True) for name in NAMES))
        callbacks = Callbacks(lambda: desired, lambda *_: None, interval_s=0.5, idle=self.routing_table.in_flight.idle)
        self.fleet = Fleet([CheckedEngine(first.url), CheckedEngine(second.url)], callbacks)
        self.relay = Relay(self.fleet.choose, self.routing_table)

    async def ask(self, model: str, tokens: int = 8, *, stream: bool = False) -> bytes | Stream:
        wanted = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": tokens, "temperature": 0}
        sent = json.dumps({**wanted, "model": model, "ignore_eos": True, "stream": stream}).encode()
        return (await self.relay.complete("chat", sent)).body

    async def text(self, model: str) -> str:
        answer = await self.ask(model)
        assert isinstance(answer, bytes)
        said = json.loads(answer)
        assert said["model"] == model
        return str(said["choices"][0]["message"]["content"])

    async def caught_up(self) -> None:
        async with asyncio.timeout(300):
            while not all(member.caught_up and len(member.reconciler.loaded) == 3 for member in self.fleet.members):
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def pair(engine: LiveEngine, second: LiveEngine) -> AsyncIterator[Pair]:
    made = Pair(engine, second)
    made.fleet.start()
    await made.caught_up()
    yield made
    await made.fleet.stop()
    for name in NAMES:
        for member in made.fleet.members:
            await member.engine.unload(name)
    await made.fleet.close()


async def test_a_killed_engine_costs_what_it_was_answering_and_comes_back_filled(
    pair: Pair, second: LiveEngine
) -> None:
    words = {name[:2]: await pair.text(name[:2]) for name in NAMES}
    assert len(set(words.values())) == len(NAMES)
    victim = pair.fleet.members[1]
    there = next((name for name in NAMES if pair.fleet.choose(name)[0] is victim), None)
    assert there is not None, "of three adapters one has its home in the second engine"
    stream = await pair.ask(there[:2], LONG, stream=True)
    assert isinstance(stream, Stream)
    await anext(stream)
    generation = second.embedded.generation
    for pid in second.processes():
        if pid != second.embedded.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    rest = b"".join([piece async for piece in stream])
    assert b'"finish_reason":"' not in rest, "the answer was over before its engine was killed"
    last = json.loads(rest.strip().split(b"\n\n")[-1].removeprefix(b"data: "))
    assert last["error"]["code"] == "upstream_failed"
    for _ in range(5):  # no refusal, no other adapter's words
        for name, said in words.items():
            assert await pair.text(name) == said
    async with asyncio.timeout(300):
        while second.embedded.generation == generation:
            for name, said in words.items():
                assert await pair.text(name) == said
            await asyncio.sleep(0.2)
    await pair.caught_up()
    assert pair.fleet.choose(there)[0] is victim
    assert {name: await pair.text(name) for name in words} == words
