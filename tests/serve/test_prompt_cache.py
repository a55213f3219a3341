"""Cached prompts on the real engine: reused for keys of one owner, and of no use to anybody else, by count and by clock."""

import json
import random
import time
from statistics import median
from typing import Final

import pytest

from app.serve.asker import Asker
from app.serve.relay import Relay
from tests.serve.test_relay_engine import Gateway, gateway  # noqa: F401 - a fixture
from tests.support.engine import LiveEngine

pytestmark = pytest.mark.engine

TOKENS: Final = 400
"""Tokens of a prompt: many blocks of the cache, and many of the engine's steps to read."""

ROUNDS: Final = 9
"""Prompts that are timed; medians of them are compared, each owner's asked in turn."""


def prompt(seed: int) -> list[int]:
    return [random.Random(seed).randrange(5, 150) for _ in range(TOKENS)]


async def ask(relay: Relay, seed: int, owner: str, model: str) -> float:
    """Seconds that one token after this prompt took."""
    fields = {"model": model, "prompt": prompt(seed), "max_tokens": 1, "temperature": 0}
    began = time.perf_counter()
    answer = await relay.complete("completions", json.dumps(fields).encode(), asker=Asker(cache=owner))
    assert answer.status == 200
    return time.perf_counter() - began


async def hits(over: Gateway) -> float:
    """Tokens that the engine took from its cache so far."""
    lines = (await over.client.exposition()).decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


@pytest.mark.hostile("P17")
@pytest.mark.parametrize("which", ["the served model", "an adapter"])
async def test_a_prompt_is_cached_for_its_owner_alone(
    gateway: Gateway,  # noqa: F811
    engine: LiveEngine,
    which: str,
) -> None:
    model = engine.model if which == "the served model" else "a1"
    before = await hits(gateway)
    await ask(gateway.relay, 1, "alice", model)
    await ask(gateway.relay, 1, "bob", model)
    assert await hits(gateway) == before, "bob was told by the clock that alice had asked this"
    await ask(gateway.relay, 1, "alice", model)
    assert await hits(gateway) > before + TOKENS / 2


@pytest.mark.hostile("P17")
async def test_the_clock_tells_nobody_what_another_asked(
    gateway: Gateway,  # noqa: F811
    engine: LiveEngine,
) -> None:
    first, again, others = [], [], []
    for seed in range(100, 100 + ROUNDS):
        first.append(await ask(gateway.relay, seed, "alice", engine.model))
        again.append(await ask(gateway.relay, seed, "alice", engine.model))
        others.append(await ask(gateway.relay, seed, "bob", engine.model))
    print(*(f"{1000 * median(one):.1f} ms" for one in (first, again, others)))
    assert median(again) < median(first) / 1.5, "a cached prompt takes no less time: this test shows nothing"
    assert median(others) > median(again) * 1.5
