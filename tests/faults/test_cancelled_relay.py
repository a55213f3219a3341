"""A chat cancelled at its n-th await, for every n until it comes through: the engine stops, and nothing stays counted."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.domain.errors import GatewayError
from app.load.client.engine import HttpEngine
from app.serve.in_flight import InFlight
from app.serve.relay import Relay
from app.store.audit.audit import Promise
from tests.support.audited import rested
from tests.support.cancelling import Moment, ends_before
from tests.support.gateway import OpenHouse, Running, form

ENOUGH = 100
"""More awaits than a request has that ends."""

ENDLESS = 8
"""Awaits tried where it does not."""

STUCK_S = 0.5
"""Seconds after which it waits for what never comes: there are no further awaits to cancel it at."""

REST_S = 5.0
"""Seconds for the engine to hear that nobody waits any more; milliseconds on a quiet machine."""

HOUSEHOLD = 4
"""Connections the gateway itself may keep open to the engine: reconciling, and idle ones."""

CHAT = {"model": "style", "messages": [{"role": "user", "content": "hello"}]}

KINDS: dict[str, tuple[bool, dict[str, str], bool]] = {
    # kind: (streamed, the engine's fault, whether it comes to an end by itself)
    "whole": (False, {}, True),
    "streamed": (True, {}, True),
    "the engine refuses": (False, {"chat": "400"}, True),
    "the engine's core is dead": (False, {"chat": "dead-core", "health": "503"}, True),
    "the engine breaks off": (True, {"chat": "half"}, True),
    "a stream without end": (True, {"chat": "slow"}, False),
    "no answer ever": (False, {"chat": "hang"}, False),
}


def engine_of(running: Running) -> HttpEngine:
    engine = running.gateway.engine
    assert isinstance(engine, HttpEngine)
    return engine


def held(running: Running) -> tuple[int, int, int]:
    """Requests that anybody still counts: the engine, the counter of requests, connections in use (by reconciling, too)."""
    flying = running.gateway.context.routing_table.in_flight.total()
    session = engine_of(running)._inference._session
    assert session is not None
    assert session.connector is not None
    return running.simulator.running, flying, len(session.connector._acquired)


async def at_rest(running: Running) -> None:
    deadline = asyncio.get_running_loop().time() + REST_S
    while (left := held(running)) != (0, 0, 0):
        assert asyncio.get_running_loop().time() < deadline, f"answering, in flight, connections in use: {left}"
        await asyncio.sleep(0.002)


async def over(before: set[asyncio.Task[Any]]) -> None:
    """Until no task is left of those that began since, but the simulated engine's own, one for each idle connection."""
    deadline = asyncio.get_running_loop().time() + REST_S
    while left := {task for task in asyncio.all_tasks() - before if "RequestHandler.start" not in repr(task)}:
        assert asyncio.get_running_loop().time() < deadline, left
        await asyncio.sleep(0.002)


class Departures:
    """How many requests left for the engine, and how many of those were counted when they were over."""

    def __init__(self, running: Running, patch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self._running = running
        begin = InFlight.begin

        def counted(in_flight: InFlight, name: str) -> None:
            self.left += 1
            begin(in_flight, name)

        patch.setattr(InFlight, "begin", counted)
        self._before = self._told()

    def _told(self) -> float:
        told = self._running.gateway.context.metrics.exposition().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in told if line.startswith("gateway_requests_total{"))

    @property
    def over(self) -> int:
        return round(self._told() - self._before)


async def at_the_door(running: Running, body: dict[str, Any]) -> None:
    await running.http.post("/v1/chat/completions", json=body)


async def within(running: Running, body: dict[str, Any]) -> None:
    """What the door's task does: the awaits that are reached when the client leaves."""
    relay: Relay = running.gateway.context.relay
    answer = await relay.complete("chat", json.dumps(body).encode(), "a-request")
    if not isinstance(answer.body, bytes):
        try:
            async for _ in answer.body:
                pass
        finally:
            await answer.body.aclose()


@pytest.fixture
def _littered() -> Iterator[None]:
    """Nothing is let go only because garbage is collected: in a busy gateway that may take long."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def with_style(open_gateway: OpenHouse) -> AsyncIterator[Running]:
    async with open_gateway(tau=1e9) as running:
        assert (await running.http.post("/adapters", files=form("style", 0))).status_code == 201
        yield running


@pytest.mark.usefixtures("_littered")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [at_the_door, within], ids=["at the door", "within"])
@pytest.mark.parametrize("moment", Moment)
async def test_a_chat_cancelled_at_any_await(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch, where: Any, kind: str, moment: Moment
) -> None:
    streamed, faults, ends = KINDS[kind]
    async with with_style(open_gateway) as running:
        departures = Departures(running, monkeypatch)
        before = asyncio.all_tasks()
        running.simulator.faults |= faults
        through = stuck = False
        for n in range(1, ENOUGH if ends else ENDLESS):
            try:
                async with asyncio.timeout(REST_S if ends else STUCK_S):
                    through = await ends_before(where(running, CHAT | {"stream": streamed}), n, moment)
            except GatewayError:
                through = True
            except TimeoutError:
                stuck = True
            await at_rest(running)
            assert departures.over == departures.left, f"cancelled at await {n}, and counted other than once"
            if through or stuck:
                break
        assert (through, stuck and ends) == (ends, False), "it never came through" if ends else "it ended by itself"
        assert departures.left > (1 if ends else 0), "hardly a request got as far as the engine"
        running.simulator.faults.clear()
        assert (await running.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert running.simulator.connections <= HOUSEHOLD
        await over(before)
        await rested(running, [Promise("style", 1)])
