"""Shared resources, and the receiver of uploads with its limits and its quarantine, made from the settings."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Final

from fastapi import Request

from app.api.access.caller import Caller, caller_of
from app.api.dependencies import holder_of
from app.concurrency.pools import Pool
from app.domain.shares import SHARED, Resource, Shares
from app.gateway.components import Components
from app.gateway.gauges import watch_waiting
from app.gateway.signed_uploads import UploadKeys
from app.load.embedded.command import cores, cpu_build
from app.observe.log import event
from app.server.open_files import half_of_open_files
from app.server.settings import Settings
from app.upload.limits import MIB, UploadLimits
from app.upload.quarantine import Quarantine
from app.upload.receive import PendingUpload, receive

SEQUENCES_A_CORE: Final = 4
MIN_SEQUENCES: Final = 8
"""Sequences per core, and at least, in a CPU engine that several keys share. On two cores, 8 sequences made each token take
1.4 times as long as a single one, 16 took 1.9 times, 64 took 3.5 times."""

Receive = Callable[[Request], Awaitable[PendingUpload]]
"""Turns a request's body into a sealed upload."""


def shares_of(settings: Settings) -> Shares:
    """Return the ledger of shared resources, with the limits that these settings and this system allow."""
    keys, others = settings.keys, bool(settings.oidc_issuers)
    connections = half_of_open_files(SHARED[Resource.CONNECTIONS].limit)
    limits = {
        Resource.UPLOADS: settings.max_uploads,
        Resource.CONNECTIONS: connections,
        Resource.SEQUENCES: settings.max_sequences or _sequences(settings, alone=len(keys) < 2 and not others),
    }
    return Shares(keys, limits, others=others)


def _sequences(settings: Settings, *, alone: bool) -> int:
    """Return the default for the most sequences in the engines at the same time. alone: there is a single caller.

    In a CPU engine each additional sequence slows the others. With a single key no other caller is affected, so the limit
    is not lowered.
    """
    if settings.engine_urls or alone or not cpu_build():
        return SHARED[Resource.SEQUENCES].limit
    return max(MIN_SEQUENCES, SEQUENCES_A_CORE * cores())


async def _check_signature(upload: PendingUpload, caller: Caller, keys: UploadKeys, pool: Pool) -> None:
    """Check an upload's signature, and log the key that made it. Raises Refused SIGNATURE_REQUIRED or BAD_SIGNATURE."""
    received = upload.received
    signed_by = await pool(keys.check, caller.tenant, upload.signature, received)
    if signed_by is not None:
        event(
            "upload_signature_verified",
            adapter=caller.full(upload.name),
            config=received.config_digest.hex,
            weights=received.weights_digest.hex,
            key=signed_by,
        )


def receiver(settings: Settings, components: Components, shares: Shares, closers: ExitStack) -> Receive:
    """Return the receiver of uploads. `closers` closes its quarantine."""
    limits = UploadLimits(
        max_weights_bytes=settings.max_weights_mib * MIB,
        max_concurrent=settings.max_uploads,
        free_disk_floor_bytes=settings.min_free_disk_mib * MIB,
    )
    quarantine = Quarantine(settings.data / "quarantine", limits.free_disk_floor_bytes)
    closers.callback(quarantine.close)
    watch_waiting(components.metrics, shares, quarantine, limits.free_disk_floor_bytes)

    upload_keys = settings.signed_uploads

    async def receive_body(request: Request) -> PendingUpload:
        caller, pool = holder_of(request), components.pools.receiving
        upload = await receive(request.stream(), request.headers, limits, quarantine, shares, pool, caller)
        try:
            await _check_signature(upload, caller_of(request), upload_keys, pool)
        except BaseException:
            async with upload:  # frees file and slot
                raise
        return upload

    return receive_body
