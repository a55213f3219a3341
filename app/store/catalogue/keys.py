"""Keys made at run time: made, rotated and revoked in the catalogue, and read by every gateway that shares it.

A revoked key's row stays for FORGET_S, so that a gateway that asks for changes sees it. The key itself is never stored.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select, update

from app.domain.api_keys import Key, Role
from app.domain.errors import KEY_EXISTS, KEY_NOT_FOUND, TOO_MANY_KEYS, Refused
from app.domain.stored_key import StoredKey
from app.store.catalogue.database import Database
from app.store.catalogue.tenant_tables import api_keys

MAX_KEYS: Final = 1000
"""Most keys of one tenant, those revoked within FORGET_S among them: whoever may make keys must not fill the catalogue."""

FORGET_S: Final = 86_400.0
"""Seconds that a revoked key's row stays."""


class KeyStore:
    """Keys made at run time. Thread-safe; blocking. All methods may raise Unavailable, as the catalogue's."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now

    def create(self, key: Key, expires_at: datetime | None) -> StoredKey:
        """Store a new key. Raises Refused KEY_EXISTS if its tenant has one of this name, TOO_MANY_KEYS."""
        with self._database.writing() as connection:
            revision = _next(connection)  # before rows are deleted, or it might be used twice
            forgotten = api_keys.c.revoked_at < self._now() - timedelta(seconds=FORGET_S)
            connection.execute(delete(api_keys).where(forgotten))
            known = _found(connection, key.tenant, key.name)
            if known is not None and known.revoked_at is None:
                raise Refused(KEY_EXISTS, f"there is a key {key.name!r} already", param="name")
            count = select(func.count()).select_from(api_keys).where(api_keys.c.tenant == key.tenant)
            if known is None and connection.execute(count).scalar_one() >= MAX_KEYS:
                raise Refused(TOO_MANY_KEYS, f"a tenant has at most {MAX_KEYS} keys, those revoked today among them")
            connection.execute(delete(api_keys).where(*_at(key.tenant, key.name)))
            values = {
                "tenant": key.tenant,
                "name": key.name,
                "roles": ",".join(sorted(key.roles)),
                "key_owner": key.owner,
                "digest": key.digest.hex(),
                "created_at": self._now(),
                "expires_at": expires_at,
                "revision": revision,
            }
            connection.execute(insert(api_keys).values(values))
            return _living(connection, key.tenant, key.name)

    def rotate(self, tenant: str, name: str, digest: bytes, overlap_s: float) -> StoredKey:
        """Replace a key, and accept the one before for `overlap_s` more seconds. Raises Refused KEY_NOT_FOUND."""
        with self._database.writing() as connection:
            known = _living(connection, tenant, name)
            if known.expires_at is not None and known.expires_at <= self._now():
                raise Refused(
                    KEY_NOT_FOUND, f"the key {name[:80]!r} has expired; revoke it and make a new one", param="name"
                )
            values = {
                "digest": digest.hex(),
                "previous_digest": known.key.digest.hex(),
                "previous_until": self._now() + timedelta(seconds=overlap_s),
            }
            return self._change(connection, known, values)

    def revoke(self, tenant: str, name: str) -> StoredKey:
        """Revoke a key. Raises Refused KEY_NOT_FOUND."""
        with self._database.writing() as connection:
            return self._change(connection, _living(connection, tenant, name), {"revoked_at": self._now()})

    def of_tenant(self, tenant: str) -> tuple[StoredKey, ...]:
        """Return a tenant's keys by name, without revoked ones."""
        query = select(api_keys).where(api_keys.c.tenant == tenant, api_keys.c.revoked_at.is_(None))
        with self._database.reading() as connection:
            return tuple(map(_stored, connection.execute(query.order_by(api_keys.c.name))))

    def changed_since(self, revision: int) -> tuple[StoredKey, ...]:
        """Return the keys that were changed after this revision, revoked ones among them; 0: every key."""
        query = select(api_keys).where(api_keys.c.revision > revision).order_by(api_keys.c.revision)
        with self._database.reading() as connection:
            return tuple(map(_stored, connection.execute(query)))

    def tenants(self) -> Mapping[str, int]:
        """Return tenant → number of its keys made at run time."""
        living = api_keys.c.revoked_at.is_(None)
        query = select(api_keys.c.tenant, func.count().label("keys")).where(living).group_by(api_keys.c.tenant)
        with self._database.reading() as connection:
            return {row.tenant: row.keys for row in connection.execute(query)}

    def record_used(self, times: Mapping[tuple[str, str], datetime]) -> None:
        """Record the last use of keys: (tenant, name) → time. It does not count as a change."""
        with self._database.beside() as connection:
            for (tenant, name), at in sorted(times.items()):  # in one order: no two gateways deadlock
                earlier = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < at)
                connection.execute(update(api_keys).where(*_at(tenant, name), earlier).values(last_used_at=at))

    def _change(self, connection: Connection, known: StoredKey, values: Mapping[str, Any]) -> StoredKey:
        at = (known.key.tenant, known.key.name)
        changed = update(api_keys).where(*_at(*at)).values(**values, revision=_next(connection))
        connection.execute(changed)
        found = _found(connection, *at)
        assert found is not None
        return found


def _next(connection: Connection) -> int:
    """Return the next revision. Inside a transaction that excludes other writers."""
    return int(connection.execute(select(func.coalesce(func.max(api_keys.c.revision), 0))).scalar_one()) + 1


def _at(tenant: str, name: str) -> tuple[ColumnElement[bool], ...]:
    return api_keys.c.tenant == tenant, api_keys.c.name == name


def _found(connection: Connection, tenant: str, name: str) -> StoredKey | None:
    row = connection.execute(select(api_keys).where(*_at(tenant, name))).one_or_none()
    return None if row is None else _stored(row)


def _living(connection: Connection, tenant: str, name: str) -> StoredKey:
    found = _found(connection, tenant, name)
    if found is None or found.revoked_at is not None:
        raise Refused(KEY_NOT_FOUND, f"no key {name[:80]!r} was made at run time", param="name")
    return found


def _stored(row: Row[Any]) -> StoredKey:
    roles = frozenset(map(Role, row.roles.split(",")))
    return StoredKey(
        key=Key(row.name, roles, bytes.fromhex(row.digest), row.key_owner, row.tenant),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        previous=bytes.fromhex(row.previous_digest) if row.previous_digest else None,
        previous_until=row.previous_until,
        revision=row.revision,
    )
