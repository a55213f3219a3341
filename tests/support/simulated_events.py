"""Parts that the simulated engine's streams of named events share: /v1/responses and /v1/messages.

Faults: half, malformed, error, other, nan and eof as for chat; unlabelled: words before any event has named a model; slow:
a delta every PAUSE_S, for ever; 400 (messages only): the engine's own refusal.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from tests.support.simulator import Simulator

WORDS = ("t0", " t1", " t2")

PAUSE_S = 0.05


async def received(simulator: "Simulator", request: web.Request, kind: str) -> tuple[Mapping[str, Any], str | None]:
    """Note a request; return its body, and the fault that this kind of request has now."""
    body = await request.json()
    simulator.seen.append(body)
    simulator.request_ids.append(request.headers.get("x-request-id", ""))
    return body, simulator.faults.get(kind)


def knows(simulator: "Simulator", body: Mapping[str, Any]) -> bool:
    """Return True if the model that a body names is served or loaded."""
    return body["model"] == simulator.model or body["model"] in simulator.loaded


def model_of(body: Mapping[str, Any], fault: str | None) -> str:
    """Return the name of the model in the answer."""
    return "another@000000000000" if fault == "other" else str(body["model"])


def words(fault: str | None) -> tuple[str, ...]:
    """Return the words of an answer."""
    return WORDS * (1 << 10) if fault == "slow" else WORDS


async def streamed(
    simulator: "Simulator", request: web.Request, events: Iterable[bytes], fault: str | None
) -> web.StreamResponse:
    """Send events as a stream; the fault `half` resets the connection at its end."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    async with simulator.run():
        for event in events:
            await simulator.core()
            await response.write(event)
            if fault == "slow":
                await asyncio.sleep(PAUSE_S)
        if fault == "half" and request.transport is not None:
            await asyncio.sleep(PAUSE_S)  # let what was sent be read before the connection is reset
            request.transport.abort()
    return response
