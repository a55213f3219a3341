"""The catalogue as those see it who only look: the API's GET routes, the relay, the loader."""

from sqlalchemy import select

from app.domain.digest import Digest
from app.domain.lora import Received
from app.domain.version_state import IN_FLIGHT, SERVABLE, State
from app.store.catalogue.database import Database
from app.store.catalogue.listing import Page, page_of
from app.store.catalogue.paging import Chapter, adapters_after
from app.store.catalogue.queries import Name, adapter_named, same_version, version_numbered, versions_where
from app.store.catalogue.row_cache import RowCache
from app.store.catalogue.tables import AdapterRow, VersionRow, adapter_record, adapters, versions


class CatalogueReader:
    """Questions to the catalogue, each one transaction that sees one moment.

    Methods that take a name raise Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND when it, or the number under it, is not
    there (deleted ones are not); all may raise Unavailable: STORE_BUSY (locked) or STORE_FAILED.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._row_cache = RowCache()

    def adapters(self) -> tuple[AdapterRow, ...]:
        """All adapters by name, also those that have no version to serve yet."""
        query = select(adapters).where(adapters.c.deleted.is_(False)).order_by(adapters.c.name_key)
        with self._database.reading() as connection:
            return tuple(adapter_record(row).public for row in connection.execute(query))

    def has_named(self, key: str) -> bool:
        """Whether an adapter has this name (casefolded)."""
        query = select(adapters.c.id).where(adapters.c.name_key == key, adapters.c.deleted.is_(False))
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def ever_used(self) -> bool:
        """Whether any adapter was ever begun here, deleted ones too."""
        with self._database.reading() as connection:
            return connection.execute(select(adapters.c.id).limit(1)).first() is not None

    def page(self, contains: str, offset: int, limit: int) -> Page:
        """Some of the adapters whose name contains this in any case, with the versions that say how each stands."""
        with self._database.reading() as connection:
            return page_of(connection, contains, offset, limit)

    def chapter(self, after: str, limit: int) -> Chapter:
        """Some adapters with all their versions, from the name after this one; "" begins. limit: ≥ 1."""
        with self._database.reading() as connection:
            return adapters_after(connection, after, limit)

    def adapter(self, name: Name) -> AdapterRow:
        """One adapter."""
        with self._database.reading() as connection:
            return adapter_named(connection, name).public

    def versions(self, name: Name) -> tuple[VersionRow, ...]:
        """An adapter's versions by number."""
        with self._database.reading() as connection:
            return versions_where(connection, versions.c.adapter_id == adapter_named(connection, name).id)

    def version(self, name: Name, number: int) -> VersionRow:
        """One version."""
        with self._database.reading() as connection:
            return version_numbered(connection, name, number)

    def report(self, name: Name, number: int) -> str | None:
        """A version's report (JSON text), None while there is none."""
        with self._database.reading() as connection:
            row = version_numbered(connection, name, number)
            query = select(versions.c.report).where(versions.c.spelling == row.name.text, versions.c.number == number)
            report: str | None = connection.execute(query).scalar_one()
            return report

    def resolve(self, name: Name, number: int | None = None) -> VersionRow | None:
        """What a request's `model` means: the active version, or the published version of that number; else None."""
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
        """The newest version of this name with the same received bytes, unless that failed or was deleted.

        parameters: None matches any. In-flight and rejected versions count: the caller sees by the state.
        """
        with self._database.reading() as connection:
            return same_version(connection, name, received, parameters)

    def served(self) -> tuple[VersionRow, ...]:
        """Every published version, emptied ones too: the active ones first, each time the newest first."""
        with self._database.reading() as connection:
            rows = self._row_cache.published(connection)
        ready = [row for row in rows if row.state is State.READY]
        retired = [row for row in rows if row.state is not State.READY]
        return (*reversed(ready), *reversed(retired))

    def servable(self) -> tuple[VersionRow, ...]:
        """What the engine should hold: `served` without the emptied versions, which have no artefact."""
        return tuple(row for row in self.served() if row.artefact is not None)

    def pending(self) -> tuple[VersionRow, ...]:
        """Stored versions, oldest first: they wait for the engine (emptied ones wait only for `activate`)."""
        with self._database.reading() as connection:
            return versions_where(connection, versions.c.state == State.STORED)

    def unfinished(self) -> tuple[VersionRow, ...]:
        """Versions in flight, oldest first."""
        with self._database.reading() as connection:
            return versions_where(connection, versions.c.state.in_(IN_FLIGHT))

    def originals_needed(self) -> frozenset[Digest]:
        """Digests of both files of every upload that may be wanted again: refused, failed and deleted ones are not."""
        query = select(versions.c.config_digest, versions.c.weights_digest).distinct()
        query = query.where(versions.c.state.in_((*IN_FLIGHT, State.STORED, *SERVABLE)))
        with self._database.reading() as connection:
            return frozenset(Digest(value) for row in connection.execute(query) for value in row)

    def live_digests(self) -> frozenset[Digest]:
        """Artefacts that some version still needs. Others may go, but only while no upload is between put and stored."""
        query = select(versions.c.artefact).where(versions.c.artefact.is_not(None), versions.c.state != State.DELETED)
        with self._database.reading() as connection:
            return frozenset(Digest(value) for value in connection.execute(query).scalars())
