"""Warm-up: brings a cold adapter into the engines' slots before its first request.

vLLM answers to more adapters than it holds. One that was not requested lately is read again from the store by its next
request (engine.md rows 3 and 12), which waits for it. Only a request brings it back, so the warm-up sends one.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.errors import (
    ENGINE_UNAVAILABLE,
    VERSION_NOT_READY,
    VERSION_UNLOADED,
    GatewayError,
    Refused,
    Unavailable,
)
from app.gateway.components import Components
from app.load.reconcile.reconciler import Reconciler
from app.observe.log import event
from app.serve.routing_table import Target

WARM_S: Final = 120.0
"""Seconds that an engine may take: as long as a load, because the request, too, may have to wait for room in a batch."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """Warm-up of one engine that holds the version. seconds: its duration. error: why it failed; None if it did not."""

    number: int
    seconds: float
    error: GatewayError | None


@dataclass(frozen=True, slots=True)
class Warmth:
    """Result of a warm-up.

    target: the requested version. engines: those that hold it; none if the served model answers in its place.
    """

    target: Target
    engines: tuple[Warmed, ...]


async def warm(components: Components, name: str, number: int | None = None) -> Warmth:
    """Request one token from every engine that holds this version, by default the active one.

    It then stays warm as long as any adapter that was just used: there is no pinning. Raises Refused as
    `Catalogue.version` does, VERSION_UNLOADED if it is too old to be kept loaded, or VERSION_NOT_READY if it is not served
    otherwise; Unavailable ENGINE_UNAVAILABLE if no engine holds it yet, or the first engine's error if none could be
    warmed.
    """
    target = await _target(components, name, number)
    if target.digest is None:
        return Warmth(target, ())
    holding = [one for one in components.reconciler.each if one.is_loaded(target.engine_name)]
    if not holding:
        raise Unavailable(ENGINE_UNAVAILABLE, f"{target.asked} is being loaded into the engine", param="name")
    # An adapter with a request in flight is not unloaded.
    components.routing_table.in_flight.begin(target.engine_name)
    try:
        engines = await asyncio.gather(*(_warmed(one, target.engine_name) for one in holding))
    finally:
        components.routing_table.in_flight.end(target.engine_name)
    errors = [one.error for one in engines if one.error is not None]
    if len(errors) == len(engines):
        raise errors[0]
    event("warmed", adapter=name, version=target.version, seconds=_seconds_by_engine(engines))
    return Warmth(target, tuple(engines))


async def _target(components: Components, name: str, number: int | None) -> Target:
    if number is None:
        number = (await components.pools.reading(components.catalogue.adapter, name)).active
        if number is None:
            raise Refused(VERSION_NOT_READY, f"{name} has no version that is served", param="name")
    row = await components.pools.reading(components.catalogue.version, name, number)
    target = components.routing_table.snapshot.targets.get(f"{row.name}@{row.number}")
    if row.key in components.routing_table.snapshot.unloaded:
        raise Refused(VERSION_UNLOADED, f"{name} version {number} is not kept loaded", param="version")
    if target is None:
        raise Refused(VERSION_NOT_READY, f"{name} version {number} is {row.state} and not served", param="version")
    return target


async def _warmed(engine: Reconciler, name: str) -> Warmed:
    began, error = time.monotonic(), None
    try:
        async with asyncio.timeout(WARM_S):
            await engine.warm(name)
    except TimeoutError:
        error = Unavailable(ENGINE_UNAVAILABLE, f"engine {engine.number} did not answer within {WARM_S:.0f} s")
    except Unavailable as failed:
        error = failed
    return Warmed(engine.number, time.monotonic() - began, error)


def _seconds_by_engine(engines: Sequence[Warmed]) -> dict[str, float]:
    return {str(one.number): round(one.seconds, 3) for one in engines if one.error is None}
