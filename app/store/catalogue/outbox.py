"""Outbox: messages to webhooks, written by the transaction whose change they tell."""

import hashlib
import json
import logging
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select

from app.domain.tenants import split_name
from app.domain.version_state import Event, State
from app.domain.webhook import Delivery, Notice, Topic
from app.observe.log import event
from app.store.catalogue.clock import clock
from app.store.catalogue.tables import VersionRow
from app.store.catalogue.tenant_tables import webhook_messages, webhooks

MAX_WAITING: Final = 1000
"""Most messages that wait for one webhook, a megabyte at most: further ones are left out until some were delivered."""

_TOPICS: Final[Mapping[Event, Topic]] = {
    Event.ACTIVATE: Topic.READY,
    Event.REJECT: Topic.REJECTED,
    Event.FAIL: Topic.FAILED,
}


def tell_move(connection: Connection, before: VersionRow, move: Event, now: VersionRow) -> None:
    """Write the messages about a version's change of state, if its tenant has webhooks for them."""
    if (topic := _TOPICS.get(move)) is None:
        return
    if topic is Topic.REJECTED and before.state is State.STORED:
        topic = Topic.CANARIES_FAILED
    tell_version(connection, topic, now)


def tell_version(connection: Connection, topic: Topic, row: VersionRow, why: str | None = None) -> None:
    """Write the messages about a version. why: code of the reason; default: the version's own."""
    tenant, plain = split_name(str(row.name))
    data = {
        "adapter": plain,
        "version": row.number,
        "state": row.state,
        "outcome": row.outcome,
        "code": why or row.error_code,
        "modules_total": row.modules_total,
        "modules_pruned": row.modules_pruned,
        "modules_projected": row.modules_projected,
        "rung": row.rung,
    }
    _tell(connection, tenant, topic, data)


def tell_notice(connection: Connection, notice: Notice) -> None:
    """Write the messages about a notice, unless they were written before: by this gateway or another one."""
    _tell(connection, notice.tenant, notice.topic, notice.data, notice.once)


def tell_ping(connection: Connection, webhook: str, tenant: str) -> str | None:
    """Write a ping to one webhook, and return its id; None if too many messages wait."""
    return _write(connection, webhook, tenant, Topic.PING, {}, clock(connection))


def _tell(connection: Connection, tenant: str, topic: Topic, data: Mapping[str, Any], once: str | None = None) -> None:
    rows = connection.execute(select(webhooks.c.id, webhooks.c.topics).where(webhooks.c.tenant == tenant)).all()
    wanted = [row.id for row in rows if topic in row.topics.split(",")]
    if not wanted:
        return
    at = clock(connection)
    for webhook in wanted:
        message = None if once is None else "msg_" + hashlib.sha256(f"{webhook} {once}".encode()).hexdigest()[:32]
        if message is None or not _is_there(connection, message):
            _write(connection, webhook, tenant, topic, data, at, message)


def _is_there(connection: Connection, message: str) -> bool:
    query = select(webhook_messages.c.id).where(webhook_messages.c.id == message)
    return connection.execute(query).first() is not None


def _write(
    connection: Connection,
    webhook: str,
    tenant: str,
    topic: Topic,
    data: Mapping[str, Any],
    at: datetime,
    message: str | None = None,
) -> str | None:
    message = message or f"msg_{secrets.token_hex(16)}"
    waiting = (webhook_messages.c.webhook == webhook, webhook_messages.c.delivery == Delivery.WAITING)
    count = select(func.count()).select_from(webhook_messages).where(*waiting)
    if connection.execute(count).scalar_one() >= MAX_WAITING:
        event("webhook_message_dropped", logging.WARNING, tenant=tenant, webhook=webhook, topic=topic)
        return None
    body = {"type": topic, "timestamp": f"{at:%Y-%m-%dT%H:%M:%SZ}", "data": {"tenant": tenant, **data}}
    values = {
        "id": message,
        "webhook": webhook,
        "topic": topic,
        "body": json.dumps(body, separators=(",", ":")),
        "created_at": at,
        "delivery": Delivery.WAITING,
        "due_at": at,
        "attempts": 0,
        "problem": "",
    }
    connection.execute(insert(webhook_messages).values(values))
    return message
