"""How the gateway takes uploads in: its limits, its places, its quarantine, and who shares them."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Final

from fastapi import Request

from app.domain.keys import Role
from app.rooms import Rooms
from app.settings import Settings
from app.upload.limits import MIB, UploadLimits
from app.upload.quarantine import Quarantine
from app.upload.receive import PendingUpload, Slots, receive
from app.watching import watch_waiting

UPLOADERS: Final = frozenset({Role.UPLOAD})

Receive = Callable[[Request], Awaitable[PendingUpload]]
"""A request's body → a sealed upload."""


def receiver(settings: Settings, rooms: Rooms, doors: ExitStack) -> Receive:
    """What turns a request's body into a sealed upload. Where several keys may upload, they share the places."""
    limits = UploadLimits(
        max_weights_bytes=settings.max_weights_mib * MIB,
        max_concurrent=settings.max_uploads,
        free_disk_floor_bytes=settings.min_free_disk_mib * MIB,
    )
    quarantine = Quarantine(settings.data / "quarantine", limits.free_disk_floor_bytes)
    doors.callback(quarantine.close)
    slots = Slots(limits.max_concurrent)
    watch_waiting(rooms.metrics, slots, quarantine, limits.free_disk_floor_bytes)

    shared = sum(key.may(UPLOADERS) for key in settings.keys) > 1

    async def receive_body(request: Request) -> PendingUpload:
        who = request.state.key if shared else None
        return await receive(request.stream(), request.headers, limits, quarantine, slots, rooms.pools.receiving, who)

    return receive_body
