"""Webhooks in the catalogue, and their messages on the way: claimed by one gateway at a time, tried, and forgotten."""

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from app.domain.errors import TOO_MANY_WEBHOOKS, WEBHOOK_NOT_FOUND, Refused
from app.domain.webhook import MAX_WEBHOOKS, Delivery, Message, Notice, Sending, Topic, Webhook
from app.store.catalogue.clock import clock
from app.store.catalogue.database import Database
from app.store.catalogue.outbox import tell_notice, tell_ping
from app.store.catalogue.tenant_tables import PROBLEM_LIMIT, webhook_messages, webhooks

LEASE_S: Final = 120.0
"""Seconds after which a message whose gateway told nothing of its try is tried again: longer than any try takes."""

SHOWN: Final = 100
"""Most messages of one webhook that are listed, the newest first."""

_M: Final = webhook_messages.c
_WAITS: Final = _M.delivery == Delivery.WAITING


class WebhookStore:
    """Webhooks and their messages. Thread-safe; blocking. All methods may raise Unavailable, as the catalogue's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, url: str, topics: Iterable[Topic]) -> Webhook:
        """Store a webhook. Raises Refused TOO_MANY_WEBHOOKS."""
        with self._database.writing() as connection:
            count = select(func.count()).select_from(webhooks).where(webhooks.c.tenant == tenant)
            if connection.execute(count).scalar_one() >= MAX_WEBHOOKS:
                raise Refused(TOO_MANY_WEBHOOKS, f"a tenant has at most {MAX_WEBHOOKS} webhooks")
            made = f"wh_{secrets.token_hex(8)}"
            values = {
                "id": made,
                "tenant": tenant,
                "url": url,
                "topics": ",".join(sorted(topics)),
                "created_at": clock(connection),
            }
            connection.execute(insert(webhooks).values(values))
            return _found(connection, tenant, made)

    def of_tenant(self, tenant: str) -> tuple[Webhook, ...]:
        """Return a tenant's webhooks, the oldest first."""
        query = select(webhooks).where(webhooks.c.tenant == tenant).order_by(webhooks.c.created_at, webhooks.c.id)
        with self._database.reading() as connection:
            return tuple(map(_webhook, connection.execute(query)))

    def delete(self, tenant: str, webhook: str) -> None:
        """Delete a webhook with its messages. Raises Refused WEBHOOK_NOT_FOUND."""
        with self._database.writing() as connection:
            _found(connection, tenant, webhook)
            connection.execute(delete(webhooks).where(webhooks.c.id == webhook))

    def ping(self, tenant: str, webhook: str) -> str:
        """Write a ping to a webhook, and return its id. Raises Refused WEBHOOK_NOT_FOUND."""
        with self._database.writing() as connection:
            _found(connection, tenant, webhook)
            return tell_ping(connection, webhook, tenant)

    def messages(self, tenant: str, webhook: str) -> tuple[Message, ...]:
        """Return the newest messages of a webhook, the newest first. Raises Refused WEBHOOK_NOT_FOUND."""
        query = select(webhook_messages).where(_M.webhook == webhook).order_by(_M.created_at.desc(), _M.id)
        with self._database.reading() as connection:
            _found(connection, tenant, webhook)
            return tuple(map(_message, connection.execute(query.limit(SHOWN))))

    def notice(self, notices: Iterable[Notice]) -> None:
        """Write the messages of notices, each once over all gateways."""
        with self._database.writing() as connection:
            for one in notices:
                tell_notice(connection, one)

    def is_due(self) -> bool:
        """Return whether a message waits for a try now."""
        with self._database.reading() as connection:
            due = (_WAITS, _M.due_at <= clock(connection))
            return connection.execute(select(_M.id).where(*due).limit(1)).first() is not None

    def claim(self, limit: int, of_one_tenant: int, busy: Mapping[str, int]) -> tuple[Sending, ...]:
        """Return messages that are to be sent now, the longest due first; no other gateway gets them for LEASE_S.

        of_one_tenant: the most of one tenant, with those that it has in `busy`.
        """
        place = func.row_number().over(partition_by=webhooks.c.tenant, order_by=(_M.due_at, _M.id)).label("place")
        joined = select(_M.id, webhooks.c.tenant, webhooks.c.url, place).join(webhooks, webhooks.c.id == _M.webhook)
        with self._database.beside() as connection:
            at = clock(connection)
            due = joined.where(_WAITS, _M.due_at <= at).order_by(_M.due_at, _M.id).subquery()
            found = connection.execute(select(due).where(due.c.place <= of_one_tenant)).all()
            chosen: dict[str, Row[Any]] = {}
            taken = Counter(busy)
            for row in found:
                if taken[row.tenant] < of_one_tenant and len(chosen) < limit:
                    taken[row.tenant] += 1
                    chosen[row.id] = row
            still = (_M.id.in_(chosen), _WAITS, _M.due_at <= at)
            claimed = connection.execute(select(webhook_messages).where(*still).with_for_update(skip_locked=True)).all()
            for row in claimed:
                values = {"attempts": row.attempts + 1, "due_at": at + timedelta(seconds=LEASE_S)}
                connection.execute(update(webhook_messages).where(_M.id == row.id).values(values))
            return tuple(
                Sending(row.id, row.webhook, chosen[row.id].tenant, chosen[row.id].url, row.body, row.attempts + 1)
                for row in claimed
            )

    def record(
        self, sent: Sending, delivery: Delivery, *, status: int | None, problem: str, again_s: float = 0.0
    ) -> None:
        """Record the end of a try, unless another gateway has begun one since. again_s: seconds until the next one."""
        ours = (_M.id == sent.message, _M.attempts == sent.attempt, _WAITS)
        with self._database.beside() as connection:
            values: Mapping[str, Any] = {
                "delivery": delivery,
                "status": status,
                "problem": problem[:PROBLEM_LIMIT],
                "due_at": clock(connection) + timedelta(seconds=again_s),
            }
            connection.execute(update(webhook_messages).where(*ours).values(values))

    def forget(self, older_s: float) -> None:
        """Delete messages that wait no more and are older than this."""
        with self._database.beside() as connection:
            old: tuple[ColumnElement[bool], ...] = (
                _M.delivery != Delivery.WAITING,
                _M.created_at < clock(connection) - timedelta(seconds=older_s),
            )
            connection.execute(delete(webhook_messages).where(*old))


def _found(connection: Connection, tenant: str, webhook: str) -> Webhook:
    query = select(webhooks).where(webhooks.c.tenant == tenant, webhooks.c.id == webhook)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise Refused(WEBHOOK_NOT_FOUND, f"no webhook {webhook[:40]!r}", param="webhook")
    return _webhook(row)


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(row.id, row.tenant, row.url, frozenset(map(Topic, row.topics.split(","))), row.created_at)


def _message(row: Row[Any]) -> Message:
    return Message(
        row.id,
        Topic(row.topic),
        row.created_at,
        Delivery(row.delivery),
        row.attempts,
        row.status,
        row.problem,
        row.due_at,
    )
