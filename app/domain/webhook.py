"""Webhooks: addresses of a tenant's that are told what becomes of its adapters, and the signature of each message.

Messages and signatures are those of the Standard Webhooks specification (standardwebhooks.com, version 1): HMAC-SHA256 over
the message's id, the time and the body. The secret is derived, so that no database holds it.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from app.domain.errors import BAD_REQUEST, Refused

MAX_WEBHOOKS: Final = 20
"""Most webhooks of one tenant: each change of a version writes a message for every one of them."""

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - no secret itself
"""Beginning of a secret as the specification's libraries take it; base64 follows."""


_ID: Final = re.compile(r"wh_[0-9a-f]{16}")


class Topic(StrEnum):
    """Kind of message: its `type`."""

    READY = "version.ready"
    REJECTED = "version.rejected"
    CANARIES_FAILED = "version.canaries_failed"
    FAILED = "version.failed"
    WITHHELD = "version.withheld"
    QUOTA = "quota.reached"
    PING = "ping"


SUBSCRIBABLE: Final = frozenset(Topic) - {Topic.PING}
"""Topics that a webhook may choose; a ping goes to the webhook that was asked for it."""


class Delivery(StrEnum):
    """State of a message to one webhook."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook. topics: kinds of message that it gets. url: may hold a secret of its receiver's, so it is not logged."""

    id: str
    tenant: str
    url: str
    topics: frozenset[Topic]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Message:
    """Message to one webhook. id: the same at every try. attempts: tries so far, with the one that is going on. status: of
    the last answer. problem: reason why there was none, "" if there was. next_at: time of the next try while it waits."""

    id: str
    topic: Topic
    created_at: datetime
    delivery: Delivery
    attempts: int
    status: int | None
    problem: str
    next_at: datetime


@dataclass(frozen=True, slots=True)
class Sending:
    """Message that is to be sent now. attempt: number of this try, from 1."""

    message: str
    webhook: str
    tenant: str
    url: str
    body: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Notice:
    """News that no change of a row tells, for a tenant's webhooks. once: of notices with the same text one is sent.

    data: values of its message.
    """

    tenant: str
    topic: Topic
    data: Mapping[str, Any]
    once: str


def is_webhook_id(text: str) -> bool:
    """Return whether a text has the form of a webhook's id."""
    return _ID.fullmatch(text) is not None


def topics_of(names: list[str] | None) -> frozenset[Topic]:
    """Return the topics with these names; None: all. Raises Refused BAD_REQUEST."""
    if names is None:
        return SUBSCRIBABLE
    known = {topic.value: topic for topic in SUBSCRIBABLE}
    if wrong := [name for name in names if name not in known]:
        raise Refused(BAD_REQUEST, f"no topic {wrong[0][:80]!r}; there are: {', '.join(sorted(known))}", param="topics")
    return frozenset(known[name] for name in names)


def secret_of(master: bytes, webhook: str) -> str:
    """Return the secret of a webhook (ours: HMAC-SHA256 of its id, with the operator's master secret as key)."""
    derived = hmac.digest(master, f"webhook {webhook}".encode(), hashlib.sha256)
    return SECRET_PREFIX + base64.b64encode(derived).decode()


def signed_headers(secret: str, message: str, at: int, body: bytes) -> dict[str, str]:
    """Return the headers of a message: its id, the time (Unix seconds) and the signature over both and the body."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signature = hmac.digest(key, f"{message}.{at}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
