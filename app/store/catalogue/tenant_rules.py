"""Rules of tenants in the catalogue: an override of the policy, and canaries."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from app.domain.policy_override import NO_OVERRIDE, PolicyOverride, override_from
from app.store.catalogue.database import Database
from app.store.catalogue.tenant_tables import tenant_rules
from app.store.cluster.peers import next_revision


@dataclass(frozen=True, slots=True)
class StoredRules:
    """Rules of one tenant. battery: canaries as JSON lines; None: none. revision: the catalogue's, of their last change."""

    tenant: str
    override: PolicyOverride = NO_OVERRIDE
    battery: str | None = None
    revision: int = 0


class TenantRuleStore:
    """Rules of tenants. A change is one of the catalogue, so that every gateway follows it. Thread-safe; blocking.

    All methods may raise Unavailable, as the catalogue's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_override(self, tenant: str, override: PolicyOverride) -> None:
        """Replace the override of a tenant."""
        self._set(tenant, override=json.dumps(asdict(override)))

    def set_battery(self, tenant: str, battery: str | None) -> None:
        """Replace the canaries of a tenant."""
        self._set(tenant, battery=battery)

    def of(self, tenant: str) -> StoredRules:
        """Return the rules of a tenant."""
        query = select(tenant_rules).where(tenant_rules.c.tenant == tenant)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return StoredRules(tenant) if row is None else _stored(row)

    def changed_since(self, revision: int) -> tuple[StoredRules, ...]:
        """Return the rules that were set after this revision, oldest change first; 0: of every tenant."""
        query = select(tenant_rules).where(tenant_rules.c.revision > revision).order_by(tenant_rules.c.revision)
        with self._database.reading() as connection:
            return tuple(map(_stored, connection.execute(query)))

    def _set(self, tenant: str, **values: str | None) -> None:
        with self._database.writing() as connection:
            changed = {**values, "revision": next_revision(connection)}
            there = update(tenant_rules).where(tenant_rules.c.tenant == tenant).values(changed)
            if not connection.execute(there).rowcount:
                _add(connection, tenant, changed)


def _add(connection: Connection, tenant: str, values: dict[str, Any]) -> None:
    connection.execute(insert(tenant_rules).values({"override": "{}", "tenant": tenant, **values}))


def _stored(row: Row[Any]) -> StoredRules:
    return StoredRules(row.tenant, override_from(json.loads(row.override)), row.battery, row.revision)
