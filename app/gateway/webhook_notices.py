"""Notices: news for webhooks that no change of a row tells, kept until they are written to the outbox."""

from collections import deque
from datetime import UTC, datetime
from typing import Final

from app.domain.names import AdapterName
from app.domain.tenants import split_name
from app.domain.webhook import Notice, Topic

MOST: Final = 1000
"""Most notices that wait for the catalogue, and of which is known that they were added; further ones are dropped."""


class Notices:
    """Notices of this gateway process. Threads may add to them."""

    def __init__(self) -> None:
        self._waiting: deque[Notice] = deque()
        self._known: dict[str, None] = {}

    def quota_reached(self, tenant: str, limit: str) -> None:
        """Tell that a limit of a tenant refused a request: once an hour."""
        once = f"{tenant} {limit} {datetime.now(UTC):%Y-%m-%dT%H}"
        self._add(Notice(tenant, Topic.QUOTA, {"limit": limit}, once))

    def withheld(self, name: AdapterName, number: int, parameters: str) -> None:
        """Tell that a version does not pass the rules in force, which have this key."""
        tenant, plain = split_name(name.text)
        data = {"adapter": plain, "version": number, "code": "policy"}
        self._add(Notice(tenant, Topic.WITHHELD, data, f"{name.text} {number} {parameters}"))

    def first(self) -> tuple[Notice, ...]:
        """Return the notices that wait."""
        return tuple(self._waiting.copy())

    def drop(self, count: int) -> None:
        """Drop the first ones, which were written."""
        for _ in range(count):
            self._waiting.popleft()

    def _add(self, notice: Notice) -> None:
        if notice.once in self._known or len(self._waiting) >= MOST:
            return
        if len(self._known) >= MOST:
            self._known.clear()  # the outbox knows them all the same
        self._known[notice.once] = None
        self._waiting.append(notice)
