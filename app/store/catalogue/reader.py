"""Read-only part of the catalogue, for the API's GET routes, the relay and the loader."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import select

from app.domain.digest import Digest
from app.domain.errors import Fault
from app.domain.lora import Received
from app.domain.tenant_limits import UNLIMITED, TenantLimits
from app.domain.tenants import DEFAULT, split_name
from app.domain.version_state import IN_FLIGHT, SERVABLE, State
from app.store.catalogue.audit_log import AuditLog
from app.store.catalogue.database import Database
from app.store.catalogue.keys import KeyStore
from app.store.catalogue.limits import LimitStore
from app.store.catalogue.listing import Overview, overviews, reports_of, uploaded_since
from app.store.catalogue.paging import Chapter, adapters_after
from app.store.catalogue.queries import Name, adapter_named, same_version, version_numbered, versions_where
from app.store.catalogue.row_cache import RowCache
from app.store.catalogue.tables import AdapterRow, VersionRow, adapter_record, adapters, versions
from app.store.catalogue.tenant_rules import TenantRuleStore
from app.store.catalogue.usage import UsageStore
from app.store.catalogue.webhooks import WebhookStore


class CatalogueReader:
    """Queries of the catalogue, each one transaction that sees one snapshot.

    Methods that take a name raise Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND if it, or the number under it, does
    not exist or was deleted, except `resolve` and `find_same`, which return None; all may raise Unavailable: STORE_BUSY
    (locked) or STORE_FAILED.
    """

    def __init__(self, database: Database, default_limits: TenantLimits = UNLIMITED) -> None:
        self._database = database
        self.keys: Final = KeyStore(database)
        self.usage: Final = UsageStore(database)
        self.audit_log: Final = AuditLog(database)
        self.limits: Final = LimitStore(database, default=default_limits)
        self.tenant_rules: Final = TenantRuleStore(database)
        self.webhooks: Final = WebhookStore(database)
        self._row_cache = RowCache()

    def adapters(self) -> tuple[AdapterRow, ...]:
        """Return all adapters by name, also those without a version to serve."""
        query = select(adapters).where(adapters.c.deleted.is_(False)).order_by(adapters.c.name_key)
        with self._database.reading() as connection:
            return tuple(adapter_record(row).public for row in connection.execute(query))

    def tenants(self) -> tuple[tuple[str, int, int], ...]:
        """Return every tenant that has an adapter or a key made at run time, and `default`: label, adapters, keys."""
        with self._database.reading() as connection:
            names = connection.execute(select(adapters.c.name_key).where(adapters.c.deleted.is_(False))).scalars()
            found = Counter(split_name(name)[0] for name in names)
        keys = self.keys.tenants()
        return tuple((tenant, found[tenant], keys.get(tenant, 0)) for tenant in sorted({DEFAULT, *found, *keys}))

    def has_named(self, key: str) -> bool:
        """Return whether an adapter has this name (casefolded)."""
        query = select(adapters.c.id).where(adapters.c.name_key == key, adapters.c.deleted.is_(False))
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def ever_used(self) -> bool:
        """Return whether any adapter was ever begun here, even a deleted one."""
        with self._database.reading() as connection:
            return connection.execute(select(adapters.c.id).limit(1)).first() is not None

    def overviews(self, contains: str = "", tenant: str = DEFAULT) -> tuple[Overview, ...]:
        """Return a tenant's adapters whose names contain this text, each with its active and its newest version."""
        with self._database.reading() as connection:
            return overviews(connection, tenant, contains)

    def chapter(self, after: str, limit: int, tenant: str = DEFAULT) -> Chapter:
        """Return a tenant's adapters with all versions, from the full name after this one on; "" begins. limit: ≥ 1."""
        with self._database.reading() as connection:
            return adapters_after(connection, tenant, after, limit)

    def adapter(self, name: Name) -> AdapterRow:
        """Return one adapter."""
        with self._database.reading() as connection:
            return adapter_named(connection, name).public

    def versions(self, name: Name) -> tuple[VersionRow, ...]:
        """Return an adapter's versions by number."""
        with self._database.reading() as connection:
            return versions_where(connection, versions.c.adapter_id == adapter_named(connection, name).id)

    def version(self, name: Name, number: int) -> VersionRow:
        """Return one version."""
        with self._database.reading() as connection:
            return version_numbered(connection, name, number)

    def report(self, name: Name, number: int) -> str | None:
        """Return a version's report (JSON text), None while there is none."""
        with self._database.reading() as connection:
            row = version_numbered(connection, name, number)
            query = select(versions.c.report).where(versions.c.spelling == row.name.text, versions.c.number == number)
            report: str | None = connection.execute(query).scalar_one()
            return report

    def faults(self, row: VersionRow) -> tuple[Fault, ...]:
        """Return every fault that a version was refused for; none if only one kind was looked for, or it was deleted."""
        query = select(versions.c.faults).where(versions.c.spelling == row.name.text, versions.c.number == row.number)
        with self._database.reading() as connection:
            faults: str | None = connection.execute(query).scalars().first()
        return tuple(map(Fault.read, json.loads(faults))) if faults else ()

    def uploaded_since(self, since: datetime, limit: int, tenant: str | None = None) -> tuple[VersionRow, ...]:
        """Return the newest `limit` versions of a tenant, or of all, that were begun from this time on, newest first."""
        with self._database.reading() as connection:
            return uploaded_since(connection, tenant, since, limit)

    def reports(self, keys: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """Return (name, number) → report (JSON text) of those of these versions that exist and have one."""
        with self._database.reading() as connection:
            return reports_of(connection, keys)

    def resolve(self, name: Name, number: int | None = None) -> VersionRow | None:
        """Return the version that a request's `model` means: the active one, or the published one with that number.

        None if there is none.
        """
        wanted = adapters.c.active_version if number is None else number
        with self._database.reading() as connection:
            rows = versions_where(
                connection,
                adapters.c.name == str(name),
                versions.c.number == wanted,
                versions.c.state.in_(SERVABLE),
            )
            return rows[0] if rows else None

    def find_same(self, name: Name, received: Received, parameters: str | None = None) -> VersionRow | None:
        """Return the newest version of this name with the same received bytes that has not failed; None if there is none.

        parameters: None matches any. In-flight and rejected versions count: the caller checks the state.
        """
        with self._database.reading() as connection:
            return same_version(connection, name, received, parameters)

    def served(self) -> tuple[VersionRow, ...]:
        """Return every published version, emptied ones too: the active ones first, each group newest first."""
        with self._database.reading() as connection:
            rows = self._row_cache.published(connection)
        ready = [row for row in rows if row.state is State.READY]
        retired = [row for row in rows if row.state is not State.READY]
        return (*reversed(ready), *reversed(retired))

    def servable(self) -> tuple[VersionRow, ...]:
        """Return the versions that the engine should hold: `served` without emptied ones, which have no artefact."""
        return tuple(row for row in self.served() if row.artefact is not None)

    def pending(self) -> tuple[VersionRow, ...]:
        """Return stored versions, oldest first: they wait for the engine (emptied ones wait only for `activate`)."""
        with self._database.reading() as connection:
            return versions_where(connection, versions.c.state == State.STORED)

    def unfinished(self) -> tuple[VersionRow, ...]:
        """Return the versions in flight, oldest first."""
        with self._database.reading() as connection:
            return versions_where(connection, versions.c.state.in_(IN_FLIGHT))

    def originals_needed(self) -> frozenset[Digest]:
        """Return the digests of both files of every upload that may be needed again.

        Uploads that were refused, failed or deleted are not.
        """
        query = select(versions.c.config_digest, versions.c.weights_digest).distinct()
        query = query.where(versions.c.state.in_((*IN_FLIGHT, State.STORED, *SERVABLE)))
        with self._database.reading() as connection:
            return frozenset(Digest(value) for row in connection.execute(query) for value in row)

    def live_digests(self) -> frozenset[Digest]:
        """Return the artefacts that some version needs.

        Others may be removed, but only while no upload is between put and stored.
        """
        query = select(versions.c.artefact).where(versions.c.artefact.is_not(None), versions.c.state != State.DELETED)
        with self._database.reading() as connection:
            return frozenset(Digest(value) for value in connection.execute(query).scalars())
