"""Webhooks in the catalogue, and their messages on the way: claimed by one gateway at a time, tried, and forgotten."""

import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from app.domain.errors import RATE_LIMITED, TOO_MANY_WEBHOOKS, WEBHOOK_NOT_FOUND, Refused
from app.domain.webhook import MAX_WEBHOOKS, Delivery, Message, Notice, Sending, Topic, Webhook, is_webhook_id
from app.store.catalogue.clock import clock
from app.store.catalogue.database import Database
from app.store.catalogue.outbox import tell_notice, tell_ping
from app.store.catalogue.tenant_tables import PROBLEM_LIMIT, webhook_messages, webhooks

LEASE_S: Final = 120.0
"""Seconds after which a message whose gateway told nothing of its try is tried again: longer than any try takes."""

KEPT: Final = 200
"""Most ended messages of one webhook, the newest, that stay in the catalogue."""

NOTICES_AT_ONCE: Final = 20
"""Most notices that are written in one transaction, for which other writers wait."""

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
        """Write a ping to a webhook, and return its id.

        Raises Refused WEBHOOK_NOT_FOUND, RATE_LIMITED while an earlier ping or too many messages wait.
        """
        earlier = select(_M.id).where(_M.webhook == webhook, _WAITS, _M.topic == Topic.PING).limit(1)
        with self._database.writing() as connection:
            _found(connection, tenant, webhook)
            waits = connection.execute(earlier).first() is not None
            if waits or (written := tell_ping(connection, webhook, tenant)) is None:
                raise Refused(RATE_LIMITED, "an earlier ping waits for this webhook, or too many messages do")
            return written

    def messages(self, tenant: str, webhook: str) -> tuple[Message, ...]:
        """Return the newest messages of a webhook, the newest first. Raises Refused WEBHOOK_NOT_FOUND."""
        query = select(webhook_messages).where(_M.webhook == webhook).order_by(_M.created_at.desc(), _M.id)
        with self._database.reading() as connection:
            _found(connection, tenant, webhook)
            return tuple(map(_message, connection.execute(query.limit(SHOWN))))

    def notice(self, notices: Iterable[Notice]) -> None:
        """Write the messages of at most NOTICES_AT_ONCE notices, each once over all gateways."""
        with self._database.writing() as connection:
            for one in notices:
                tell_notice(connection, one)

    def claim(self, limit: int, of_one_tenant: int, busy: Mapping[str, int]) -> tuple[Sending, ...]:
        """Return messages that are to be sent now; no other gateway gets them for LEASE_S.

        of_one_tenant: the most of one tenant, with those that it has in `busy`. Tenants with fewer come first, then
        messages that are due longer.
        """
        if not (chosen := self._candidates(limit, of_one_tenant, busy)):
            return ()
        with self._database.beside() as connection:
            at = clock(connection)
            still = (_M.id.in_(chosen), _WAITS, _M.due_at <= at)
            claimed = connection.execute(select(webhook_messages).where(*still).with_for_update(skip_locked=True)).all()
            for row in claimed:
                values = {"attempts": row.attempts + 1, "due_at": at + timedelta(seconds=LEASE_S)}
                connection.execute(update(webhook_messages).where(_M.id == row.id).values(values))
            return tuple(
                Sending(row.id, row.webhook, chosen[row.id].tenant, chosen[row.id].url, row.body, row.attempts + 1)
                for row in claimed
            )

    def _candidates(self, limit: int, of_one_tenant: int, busy: Mapping[str, int]) -> dict[str, Row[Any]]:
        """Return message id → id, tenant, url, place and due_at of those to be claimed."""
        full = [tenant for tenant, count in busy.items() if count >= of_one_tenant]
        place = func.row_number().over(partition_by=webhooks.c.tenant, order_by=(_M.due_at, _M.id)).label("place")
        joined = select(_M.id, webhooks.c.tenant, webhooks.c.url, _M.due_at, place)
        joined = joined.join(webhooks, webhooks.c.id == _M.webhook)
        with self._database.reading() as connection:
            due = joined.where(_WAITS, _M.due_at <= clock(connection), webhooks.c.tenant.not_in(full)).subquery()
            found = connection.execute(select(due).where(due.c.place <= of_one_tenant)).all()
        turns = {row.id: busy.get(row.tenant, 0) + row.place for row in found}
        found = sorted(found, key=lambda row: (turns[row.id], row.due_at, row.id))
        return {row.id: row for row in [one for one in found if turns[one.id] <= of_one_tenant][:limit]}

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
            if delivery is not Delivery.WAITING:
                _forget_beyond(connection, sent.webhook)

    def forget(self, older_s: float) -> None:
        """Delete messages that wait no more and are older than this."""
        with self._database.beside() as connection:
            old: tuple[ColumnElement[bool], ...] = (
                _M.delivery != Delivery.WAITING,
                _M.created_at < clock(connection) - timedelta(seconds=older_s),
            )
            connection.execute(delete(webhook_messages).where(*old))


def _forget_beyond(connection: Connection, webhook: str) -> None:
    """Delete the oldest ended messages of a webhook beyond KEPT; not of those that tell once, which would be told again."""
    ended = (_M.webhook == webhook, _M.delivery != Delivery.WAITING, _M.topic.not_in((Topic.QUOTA, Topic.WITHHELD)))
    newest = select(_M.id).where(*ended).order_by(_M.created_at.desc(), _M.id).limit(KEPT)
    connection.execute(delete(webhook_messages).where(*ended, _M.id.not_in(newest)))


def _found(connection: Connection, tenant: str, webhook: str) -> Webhook:
    if not is_webhook_id(webhook):
        raise Refused(WEBHOOK_NOT_FOUND, f"no webhook {webhook[:40]!r}", param="webhook")
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
