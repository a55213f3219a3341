"""Audit log in the catalogue: acts are added to the end of one chain, whichever gateway they came to, and never changed."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import insert, select

from app.domain.audit_entry import BEGINNING, Act, AuditEntry, chained
from app.store.catalogue.database import Database
from app.store.catalogue.tenant_tables import audit_log

_ACT: Final = ("at", "key", "tenant", "action", "target", "status", "code", "address", "request")


class AuditLog:
    """The audit log. Thread-safe; blocking. All methods may raise Unavailable, as the catalogue's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, acts: Sequence[Act]) -> tuple[AuditEntry, ...]:
        """Add acts in their order, and return their entries, which are on the disk by then."""
        last = select(audit_log.c.number, audit_log.c.hash).order_by(audit_log.c.number.desc()).limit(1)
        with self._database.writing() as connection:
            found = connection.execute(last).first()
            number, previous = (found.number, found.hash) if found else (0, BEGINNING)
            entries = []
            for act in acts:
                number += 1
                entry = chained(act, number, previous)
                previous = entry.hash
                entries.append(entry)
                row = {name: getattr(act, name) for name in _ACT}
                connection.execute(
                    insert(audit_log).values(**row, number=number, previous=entry.previous, hash=previous)
                )
            return tuple(entries)

    def after(self, number: int, limit: int, tenant: str | None = None) -> tuple[AuditEntry, ...]:
        """Return the entries that follow this number, in order, of a tenant or of all."""
        query = select(audit_log).where(audit_log.c.number > number).order_by(audit_log.c.number).limit(limit)
        if tenant is not None:
            query = query.where(audit_log.c.tenant == tenant)
        with self._database.reading() as connection:
            return tuple(
                AuditEntry(row.number, Act(*(getattr(row, name) for name in _ACT)), row.previous, row.hash)
                for row in connection.execute(query)
            )
