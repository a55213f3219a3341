"""Brings a cold adapter into the engines' slots before its first request does.

vLLM answers to more adapters than it holds: one that was not asked for lately is read again from the store when it is
(engine.md rows 3 and 12), and the request that asks waits for it. Nothing but a request brings it back, so this is one.
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
"""Seconds that an engine may take: as long as a load may, and its batch has to have room besides."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """One engine that holds the version. seconds: how long it took. error: why it is not warm there; None when it is."""

    number: int
    seconds: float
    error: GatewayError | None


@dataclass(frozen=True, slots=True)
class Warmth:
    """target: what was asked for. engines: those that hold it; none where the served model answers in its place."""

    target: Target
    engines: tuple[Warmed, ...]


async def warm(components: Components, name: str, number: int | None = None) -> Warmth:
    """Ask every engine that holds this version, by default the active one, for one token.

    Afterwards it is as warm as any adapter that was just used, no longer: there is no pinning. Raises Refused as
    `Catalogue.version` does, or VERSION_NOT_READY when it is not served; Unavailable, the first engine's error, when none
    of them could be warmed.
    """
    target = await _target(components, name, number)
    if target.digest is None:
        return Warmth(target, ())
    holding = [one for one in components.reconciler.each if one.is_loaded(target.engine_name)]
    if not holding:
        raise Unavailable(ENGINE_UNAVAILABLE, f"{target.asked} is being loaded into the engine", param="name")
    components.routing_table.in_flight.begin(target.engine_name)  # what is in flight is not unloaded
    try:
        engines = await asyncio.gather(*(_warmed(one, target.engine_name) for one in holding))
    finally:
        components.routing_table.in_flight.end(target.engine_name)
    errors = [one.error for one in engines if one.error is not None]
    if len(errors) == len(engines):
        raise errors[0]
    event("warmed", adapter=name, version=target.version, seconds=_each(engines))
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


def _each(engines: Sequence[Warmed]) -> dict[str, float]:
    return {str(one.number): round(one.seconds, 3) for one in engines if one.error is None}
