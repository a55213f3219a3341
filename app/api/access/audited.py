"""Audited requests: ASGI middleware that records changes, and refusals by role or tenant, before their answers are sent.

No body, prompt, key or weight is recorded. Requests without a known key are not: anybody could fill the log with them.
"""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Final

from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access.rules import Rule
from app.domain.api_keys import Key
from app.domain.audit_entry import Act
from app.domain.printable import printable
from app.gateway.audit_trail import AuditTrail
from app.observe.request_id import REQUEST_ID
from app.serve.timing import CLIENT_GONE

FORBIDDEN: Final = 403

REFUSALS_A_MINUTE: Final = 60
"""Refused requests of one key that are recorded in a minute: whoever may change nothing must not fill the catalogue."""

REFUSED: Final = 400
"""Least status of a refusal."""

TOO_MANY: Final = 429
"""Status of a refusal by rates or shares, which is not recorded: it must cost less than what it refuses."""

FAILED: Final = 500
"""Status of a request that broke; its answer is sent outside this middleware."""

MAX_ADDRESS: Final = 64
"""Most characters of an address; a proxy may send any text as its client's."""

MAX_TARGET: Final = 127
"""Most characters of a target: a full name's."""


class AuditedRequests:
    """ASGI middleware: records requests in the audit trail."""

    def __init__(self, app: ASGIApp, trail: AuditTrail) -> None:
        self._app = app
        self._trail = trail
        self._minute = 0
        self._refused: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; record it before its answer begins, or when its client has left (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, begun = scope.setdefault("state", {}), False

        async def recorded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and not begun:
                begun = True
                await self._record(scope, message["status"])
            await send(message)

        ended = FAILED
        try:
            await self._app(scope, receive, recorded)
            ended = CLIENT_GONE
        except asyncio.CancelledError:
            ended = CLIENT_GONE
            raise
        finally:
            if not begun and "caller" in state:
                await self._record(scope, ended)

    async def _record(self, scope: Scope, status: int) -> None:
        state = State(scope["state"])
        key: Key | None = getattr(state, "key", None)
        rule: Rule | None = getattr(state, "rule", None)
        if key is None or rule is None or status == TOO_MANY or not (rule.changes or status == FORBIDDEN):
            return
        now = datetime.now(UTC)
        who = key.id if key.digest else f"tokens of {key.tenant}"  # an issuer may name any number of bearers
        if status >= REFUSED and self._too_many(who, now):
            return
        caller = getattr(state, "caller", None)
        client = scope.get("client")
        act = Act(
            at=now,
            key=key.id,
            tenant=caller.tenant if caller else key.tenant,
            action=f"{scope['method']} {scope['route'].path}",
            target=printable(getattr(state, "target", ""), MAX_TARGET),
            status=status,
            code=getattr(state, "code", ""),
            address=printable(client[0], MAX_ADDRESS) if client else "",
            request=REQUEST_ID.get() or "",
        )
        await self._trail.record(act)

    def _too_many(self, who: str, now: datetime) -> bool:
        if (minute := int(now.timestamp()) // 60) != self._minute:
            self._minute, self._refused = minute, Counter()
        self._refused[who] += 1
        return self._refused[who] > REFUSALS_A_MINUTE
