"""Shared resources, and the receiver of uploads and imports with its limits and its quarantine, made from the settings."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Final

from fastapi import Request

from app.api.access.caller import caller_of
from app.api.bodies import posted
from app.api.dependencies import holder_of
from app.api.disconnects import unless_disconnected
from app.api.schemas import NewImport
from app.domain.adapter_source import SourcePatterns, source_of
from app.domain.errors import UPLOAD_INCOMPLETE, Refused
from app.domain.outside import Address, Outside, Url
from app.domain.shares import SHARED, Resource, Shares
from app.fetch.bucket import Storage
from app.fetch.client import SourceClient
from app.fetch.hub import Hub
from app.gateway.components import Components
from app.gateway.gauges import watch_waiting
from app.gateway.imports import Imports
from app.gateway.signed_uploads import check_signature
from app.load.embedded.command import cores, cpu_build
from app.notify.post import addresses_of
from app.server.open_files import half_of_open_files
from app.server.settings import Settings
from app.upload.imported import receive_import
from app.upload.limits import MIB, UploadLimits
from app.upload.quarantine import Quarantine
from app.upload.receive import PendingUpload, receive
from app.upload.request_headers import expected_digest

SEQUENCES_A_CORE: Final = 4
MIN_SEQUENCES: Final = 8
"""Sequences per core, and at least, in a CPU engine that several keys share. On two cores, 8 sequences made each token take
1.4 times as long as a single one, 16 took 1.9 times, 64 took 3.5 times."""

MAX_IMPORT_BODY: Final = 4096
"""Most bytes of an import's body: a name of 63 characters and a source of 1,024, in JSON."""

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

    imports, upload_keys = imports_of(settings, components), settings.signed_uploads

    async def receive_body(request: Request) -> PendingUpload:
        if _is_json(request):
            return await receive_named(request)
        caller, pool = holder_of(request), components.pools.receiving
        upload = await receive(request.stream(), request.headers, limits, quarantine, shares, pool, caller)
        asker = caller_of(request)
        try:
            await check_signature(upload, asker.tenant, asker.full(upload.name), upload_keys, pool)
        except BaseException:
            async with upload:  # frees file and slot
                raise
        return upload

    async def receive_named(request: Request) -> PendingUpload:
        asked, pool = await posted(request, NewImport, MAX_IMPORT_BODY), components.pools.receiving
        source, digest = source_of(asked.source), expected_digest(request.headers)
        imports.check(source, caller_of(request).tenant)
        upload_keys.check_unsigned()
        pinned, caller = imports.pinned(source), holder_of(request)
        work = receive_import(asked.name, pinned, limits, quarantine, shares, pool, caller, digest)
        found = await unless_disconnected(request, work, lambda unwanted: pool.start(unwanted.take().close))
        if found is None:
            raise Refused(UPLOAD_INCOMPLETE, "the client left before its import ended")
        return found

    return receive_body


def imports_of(settings: Settings, components: Components) -> Imports:
    """Return the imports that these settings allow."""

    def resolve(host: str, port: int) -> Awaitable[tuple[Address, ...]]:
        return components.pools.names(addresses_of, host, port)

    networks = map(str, Outside.of(settings.import_hosts).networks)
    hub = Url.of(settings.import_hub_url)
    token, secret = settings.import_hub_token, settings.import_storage_secret_key
    return Imports(
        patterns=SourcePatterns.of(settings.import_sources),
        hub=Hub(settings.import_hub_url, token.get_secret_value() if token else None),
        hub_client=SourceClient(Outside.of([f"{hub.scheme}://{hub.authority}", *settings.import_hosts]), resolve),
        storage=Storage(
            settings.import_storage_url,
            settings.import_storage_region,
            settings.import_storage_access_key,
            secret.get_secret_value() if secret else None,
        ),
        storage_client=SourceClient(Outside.of([settings.import_storage_url, *networks]), resolve),
    )


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
