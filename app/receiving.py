"""Settings → what callers share, and what takes uploads in: its limits and its quarantine."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from fastapi import Request

from app.domain.shares import SHARED, Resource, Shares
from app.observe.open_files import half_of_open_files
from app.rooms import Rooms
from app.settings import Settings
from app.upload.limits import MIB, UploadLimits
from app.upload.quarantine import Quarantine
from app.upload.receive import PendingUpload, receive
from app.watching import watch_waiting

Receive = Callable[[Request], Awaitable[PendingUpload]]
"""A request's body → a sealed upload."""


def shares_of(settings: Settings) -> Shares:
    """The table of shared resources, with what these settings and this system allow."""
    connections = half_of_open_files(SHARED[Resource.CONNECTIONS].limit)
    limits = {
        Resource.UPLOADS: settings.max_uploads,
        Resource.CONNECTIONS: connections,
        Resource.SEQUENCES: settings.max_sequences,
    }
    return Shares(settings.keys, limits)


def receiver(settings: Settings, rooms: Rooms, shares: Shares, doors: ExitStack) -> Receive:
    """What turns a request's body into a sealed upload."""
    limits = UploadLimits(
        max_weights_bytes=settings.max_weights_mib * MIB,
        max_concurrent=settings.max_uploads,
        free_disk_floor_bytes=settings.min_free_disk_mib * MIB,
    )
    quarantine = Quarantine(settings.data / "quarantine", limits.free_disk_floor_bytes)
    doors.callback(quarantine.close)
    watch_waiting(rooms.metrics, shares, quarantine, limits.free_disk_floor_bytes)

    async def receive_body(request: Request) -> PendingUpload:
        who, pool = request.state.key, rooms.pools.receiving
        return await receive(request.stream(), request.headers, limits, quarantine, shares, pool, who)

    return receive_body
