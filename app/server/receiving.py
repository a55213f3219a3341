"""Settings → what callers share, and what takes uploads in: its limits and its quarantine."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Final

from fastapi import Request

from app.domain.shares import SHARED, Resource, Shares
from app.gateway.components import Components
from app.gateway.gauges import watch_waiting
from app.load.embedded.command import cores, cpu_build
from app.server.open_files import half_of_open_files
from app.server.settings import Settings
from app.upload.limits import MIB, UploadLimits
from app.upload.quarantine import Quarantine
from app.upload.receive import PendingUpload, receive

SEQUENCES_A_CORE: Final = 4
MIN_SEQUENCES: Final = 8
"""Sequences in a CPU engine that several keys share. On two cores 8 made each token take 1.4 times as long as alone, 16 1.9
times, 64 3.5 times."""

Receive = Callable[[Request], Awaitable[PendingUpload]]
"""A request's body → a sealed upload."""


def shares_of(settings: Settings) -> Shares:
    """The table of shared resources, with what these settings and this system allow."""
    keys = settings.keys
    connections = half_of_open_files(SHARED[Resource.CONNECTIONS].limit)
    limits = {
        Resource.UPLOADS: settings.max_uploads,
        Resource.CONNECTIONS: connections,
        Resource.SEQUENCES: settings.max_sequences or _sequences(settings, len(keys)),
    }
    return Shares(keys, limits)


def _sequences(settings: Settings, keys: int) -> int:
    """Sequences that the engines should have at the same time if nothing else is said.

    Each that is added slows the others of a CPU engine. One key alone may do as it likes.
    """
    if settings.engine_urls or keys < 2 or not cpu_build():
        return SHARED[Resource.SEQUENCES].limit
    return max(MIN_SEQUENCES, SEQUENCES_A_CORE * cores())


def receiver(settings: Settings, components: Components, shares: Shares, closers: ExitStack) -> Receive:
    """Receiver of uploads: turns a request's body into a sealed upload."""
    limits = UploadLimits(
        max_weights_bytes=settings.max_weights_mib * MIB,
        max_concurrent=settings.max_uploads,
        free_disk_floor_bytes=settings.min_free_disk_mib * MIB,
    )
    quarantine = Quarantine(settings.data / "quarantine", limits.free_disk_floor_bytes)
    closers.callback(quarantine.close)
    watch_waiting(components.metrics, shares, quarantine, limits.free_disk_floor_bytes)

    async def receive_body(request: Request) -> PendingUpload:
        who, pool = request.state.key, components.pools.receiving
        return await receive(request.stream(), request.headers, limits, quarantine, shares, pool, who)

    return receive_body
