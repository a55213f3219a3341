"""Limits of tenants in the catalogue, and what is left of each, from which the gateways draw in portions.

A gateway that drew more than it uses gives the rest back, so that limits hold over all gateways, and no request waits for
the database as long as a portion lasts. Transactions about one tenant exclude each other by its row of limits, or by a lock
of its own if it has none.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, distinct, func, insert, select, update

from app.domain.errors import QUOTA_EXCEEDED, Refused
from app.domain.lora import Received
from app.domain.names import AdapterName
from app.domain.tenant_limits import RATES, UNLIMITED, Bucket, Flow, Stock, TenantLimits
from app.domain.tenants import DEFAULT, split_name
from app.domain.version_state import IN_FLIGHT, SERVABLE, State
from app.store.catalogue.clock import clock
from app.store.catalogue.database import Database
from app.store.catalogue.queries import of_tenant
from app.store.catalogue.tables import adapters, versions
from app.store.catalogue.tenant_tables import tenant_budgets, tenant_limits, tenant_slots

SLOTS_S: Final = 30.0
"""Seconds after which the slots of a gateway that renews them no more are free; it renews them about once a second."""

_HELD: Final = (*IN_FLIGHT, State.STORED, *SERVABLE)
_LIMITS: Final = tuple(field.name for field in fields(TenantLimits))


@dataclass(frozen=True, slots=True)
class Draw:
    """Change of what one gateway holds of a tenant's flow. more: what it asks for; it may get less, or nothing.

    back: what it gives back; below 0: what it used beyond its portion. keep: of CONCURRENT, instead, what it holds on to.
    """

    tenant: str
    flow: Flow
    more: float = 0.0
    back: float = 0.0
    keep: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """Result of a draw. got: what the gateway holds in addition. left: what is left for all gateways after it; below 0:
    used too much."""

    got: float
    left: float


class OverQuota(Refused):
    """Refusal by a limit on what a tenant stores. limit: its name."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(QUOTA_EXCEEDED, message)
        self.limit = limit


class LimitStore:
    """Limits of tenants. Thread-safe; blocking. All methods may raise Unavailable, as the catalogue's."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        default: TenantLimits = UNLIMITED,
    ) -> None:
        """now: clock of a database that is this gateway's alone. default: limits of tenants for which none were set."""
        self._database = database
        self._now = now
        self._default = default

    def default(self, tenant: str) -> TenantLimits:
        """Return the limits of a tenant for which none were set: the operator's own has none."""
        return UNLIMITED if tenant == DEFAULT else self._default

    def set(self, tenant: str, limits: TenantLimits) -> None:
        """Replace the limits of a tenant."""
        with self._database.writing() as connection:
            last = connection.execute(select(func.coalesce(func.max(tenant_limits.c.revision), 0))).scalar_one()
            values = {**asdict(limits), "revision": last + 1}
            if not connection.execute(
                update(tenant_limits).where(tenant_limits.c.tenant == tenant).values(values)
            ).rowcount:
                connection.execute(insert(tenant_limits).values(tenant=tenant, **values))

    def changed_since(self, revision: int) -> tuple[tuple[str, TenantLimits, int], ...]:
        """Return the limits that were set after this revision, with their tenant and revision; 0: of every tenant."""
        query = select(tenant_limits).where(tenant_limits.c.revision > revision)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(tenant_limits.c.revision))
            return tuple((row.tenant, _limits(row), row.revision) for row in rows)

    def stock(self, tenant: str) -> tuple[TenantLimits, Stock]:
        """Return the limits of a tenant and what it stores."""
        with self._database.reading() as connection:
            return self._of(connection, tenant), _stock(connection, tenant)

    def draw(self, gateway: str, draws: Iterable[Draw]) -> tuple[Drawn, ...]:
        """Make these draws of one gateway process, whose id is `gateway`, in one transaction. Returns their results.

        A flow without a limit gives whatever is asked for.
        """
        draws = tuple(draws)
        of_tenants: dict[str, list[int]] = defaultdict(list)
        for place, one in enumerate(draws):
            of_tenants[one.tenant].append(place)
        done: dict[int, Drawn] = {}
        with self._database.beside() as connection:
            for tenant in sorted(of_tenants):  # in one order: no two gateways deadlock
                limits = self._of(connection, tenant, lock=True)
                now = clock(connection, self._now)  # after waiting for the lock
                for place in of_tenants[tenant]:
                    done[place] = self._draw(connection, gateway, draws[place], limits.of(draws[place].flow), now)
        return tuple(done[place] for place in range(len(draws)))

    def leave(self, gateway: str) -> None:
        """Free the slots of a gateway process that ends."""
        with self._database.beside() as connection:
            connection.execute(delete(tenant_slots).where(tenant_slots.c.gateway == gateway))

    def check_stock(self, connection: Connection, name: AdapterName, received: Received, *, exempt: bool) -> None:
        """Check, after a version was begun, that its tenant's stock is within its limits. Raises Refused QUOTA_EXCEEDED."""
        tenant = split_name(name.text)[0]
        limits = UNLIMITED if exempt else self._of(connection, tenant)
        if limits == UNLIMITED:
            return
        stock = _stock(connection, tenant)
        for field in fields(Stock):
            limit, held = getattr(limits, field.name), getattr(stock, field.name)
            if limit is not None and held > limit:
                size = received.config_bytes + received.weights_bytes
                more = f", {size} of them in this upload" if field.name == "bytes" else ""
                why = f"the tenant {tenant} may store {limit} {field.name}; with this upload it has {held}{more}"
                raise OverQuota(field.name, why)

    def _of(self, connection: Connection, tenant: str, *, lock: bool = False) -> TenantLimits:
        """Return the limits of a tenant. lock: until the transaction ends no other gateway draws for it."""
        query = select(tenant_limits).where(tenant_limits.c.tenant == tenant)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None and lock and self._database.shared:  # no row to lock: the limits are the default
            key = int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8], signed=True)
            connection.execute(select(func.pg_advisory_xact_lock(key)))
        return self.default(tenant) if row is None else _limits(row)

    def _draw(self, connection: Connection, gateway: str, draw: Draw, limit: int | None, now: datetime) -> Drawn:
        if limit is None:
            return Drawn(draw.more, 0.0)
        if (period := RATES[draw.flow].period_s) is None:
            return _draw_slots(connection, gateway, draw, limit, now)
        at = (tenant_budgets.c.tenant == draw.tenant, tenant_budgets.c.flow == draw.flow)
        row = connection.execute(select(tenant_budgets).where(*at)).one_or_none()
        bucket = Bucket(limit, now) if row is None else Bucket(row.remaining, row.at)
        bucket = bucket.less(-draw.back).refilled(limit, period, now)
        got = max(0.0, min(draw.more, bucket.left))
        values = {"remaining": bucket.left - got, "at": now}
        if row is None:
            connection.execute(insert(tenant_budgets).values(tenant=draw.tenant, flow=draw.flow, **values))
        else:
            connection.execute(update(tenant_budgets).where(*at).values(values))
        return Drawn(got, bucket.left - got)


def _draw_slots(connection: Connection, gateway: str, draw: Draw, limit: int, now: datetime) -> Drawn:
    connection.execute(delete(tenant_slots).where(tenant_slots.c.tenant == draw.tenant, tenant_slots.c.until < now))
    rows = connection.execute(select(tenant_slots).where(tenant_slots.c.tenant == draw.tenant)).all()
    held = {row.gateway: row.slots for row in rows}
    known = held.pop(gateway, None) is not None
    free = limit - sum(held.values()) - draw.keep
    got = max(0, min(int(draw.more), free))
    values = {"slots": draw.keep + got, "until": now + timedelta(seconds=SLOTS_S)}
    if not known:
        connection.execute(insert(tenant_slots).values(tenant=draw.tenant, gateway=gateway, **values))
    else:
        connection.execute(
            update(tenant_slots)
            .where(tenant_slots.c.tenant == draw.tenant, tenant_slots.c.gateway == gateway)
            .values(values)
        )
    return Drawn(got, free - got)


def _limits(row: Row[Any]) -> TenantLimits:
    return TenantLimits(**{name: getattr(row, name) for name in _LIMITS})


def _stock(connection: Connection, tenant: str) -> Stock:
    there = versions.c.state.in_(_HELD)
    size = func.coalesce(func.sum(versions.c.config_bytes + versions.c.weights_bytes), 0)
    query = select(func.count(distinct(versions.c.adapter_id)), func.count(versions.c.id), size)
    row = connection.execute(query.join_from(versions, adapters).where(of_tenant(tenant), there)).one()
    return Stock(*map(int, row))
