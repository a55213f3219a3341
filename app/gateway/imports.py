"""Imports: adapters that the gateway fetches from sources that the operator allowed, for callers who name them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.domain.adapter_source import AdapterSource, HubSource, PinnedSource, SourcePatterns
from app.domain.errors import SOURCE_NOT_ALLOWED, Refused
from app.fetch.bucket import Storage
from app.fetch.client import SourceClient
from app.fetch.hub import Hub


@dataclass(frozen=True, slots=True)
class Imports:
    """Sources that may be imported, and the clients that read them. Used on the event loop.

    hub_client, storage_client: each reaches the servers of its kind only.
    """

    patterns: SourcePatterns
    hub: Hub
    hub_client: SourceClient
    storage: Storage
    storage_client: SourceClient

    def check(self, source: AdapterSource, tenant: str) -> None:
        """Raise Refused SOURCE_NOT_ALLOWED unless this tenant may import this source."""
        if not self.patterns.entries:
            raise Refused(SOURCE_NOT_ALLOWED, "this gateway imports nothing", param="source")
        if not self.patterns.allow(source, tenant):
            raise Refused(
                SOURCE_NOT_ALLOWED, f"{source.place} is not among the sources that are allowed", param="source"
            )

    @asynccontextmanager
    async def pinned(self, source: AdapterSource) -> AsyncIterator[PinnedSource]:
        """Yield a source at the commit or the ETags that it has now, for reading. Raises GatewayError."""
        if isinstance(source, HubSource):
            async with self.hub_client.connected() as http:
                yield await self.hub.pin(http, source)
        else:
            async with self.storage_client.connected() as http:
                yield await self.storage.pin(http, source)
