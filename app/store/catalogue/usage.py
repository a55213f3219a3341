"""Usage in the catalogue: added up by the hour, each batch once, and read for bills."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, delete, literal, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from app.domain.usage import Usage, UsedBy
from app.store.catalogue.database import Database
from app.store.catalogue.tenant_tables import usage, usage_batches

FORGET_S: Final = 7 * 86_400.0
"""Seconds after which the row of a gateway process that adds no more is deleted: longer than any batch is tried again."""

_WHO: Final = ("hour", "tenant", "key", "adapter", "version")
_SUMS: Final = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
_INSERT: Final[Mapping[str, Callable[..., Any]]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class UsageStore:
    """Sums of usage. Thread-safe; blocking. All methods may raise Unavailable, as the catalogue's."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now

    def add(self, gateway: str, number: int, batch: Mapping[UsedBy, Usage]) -> None:
        """Add a batch, unless it was added before: a commit of which nobody knows how it ended may be tried again.

        gateway: id of the gateway process. number: of this batch, one more than the batch before; the first is 1.
        """
        with self._database.beside() as connection:
            if not self._is_next(connection, gateway, number):
                return
            insert = _INSERT[connection.dialect.name]
            for who, sums in sorted(batch.items(), key=lambda one: one[0]):  # in one order: no two batches deadlock
                row = {name: getattr(who, name) for name in _WHO} | {name: getattr(sums, name) for name in _SUMS}
                new = insert(usage).values(row)
                grown = {name: usage.c[name] + new.excluded[name] for name in _SUMS}
                connection.execute(new.on_conflict_do_update(index_elements=_WHO, set_=grown))

    def between(
        self, since: datetime, until: datetime, tenant: str | None, after: UsedBy | None, limit: int
    ) -> tuple[tuple[UsedBy, Usage], ...]:
        """Return the sums of the hours from `since` on and before `until`, in order, of a tenant or of all.

        after: the last one of the page before. limit: most sums.
        """
        who = [usage.c[name] for name in _WHO]
        query = select(*who, *(usage.c[name] for name in _SUMS)).where(usage.c.hour >= since, usage.c.hour < until)
        if tenant is not None:
            query = query.where(usage.c.tenant == tenant)
        if after is not None:
            place = (literal(getattr(after, name), usage.c[name].type) for name in _WHO)  # else a time has a zone
            query = query.where(tuple_(*who) > tuple_(*place))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(*who).limit(limit))
            return tuple((UsedBy(*row[: len(_WHO)]), Usage(*row[len(_WHO) :])) for row in rows)

    def forget_before(self, hour: datetime) -> int:
        """Delete the sums of earlier hours, and return how many there were."""
        with self._database.beside() as connection:
            return connection.execute(delete(usage).where(usage.c.hour < hour)).rowcount

    def _is_next(self, connection: Connection, gateway: str, number: int) -> bool:
        """Record that a batch is added now; return False if it was before."""
        mine = usage_batches.c.gateway == gateway
        known = connection.execute(select(usage_batches.c.number).where(mine).with_for_update()).scalar_one_or_none()
        if known is not None:
            if known >= number:
                return False
            connection.execute(update(usage_batches).where(mine).values(number=number, at=self._now()))
            return True
        old = usage_batches.c.at < self._now() - timedelta(seconds=FORGET_S)
        connection.execute(delete(usage_batches).where(old))
        connection.execute(usage_batches.insert().values(gateway=gateway, number=number, at=self._now()))
        return True
