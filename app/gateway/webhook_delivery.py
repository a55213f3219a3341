"""Webhook delivery: sends the messages of the outbox, and tries again those that were not taken.

Every gateway of a catalogue delivers; a message is claimed by one at a time. It may arrive twice, if a gateway is killed
between the answer and its record: receivers know it by its id.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeVar

from app.concurrency.pools import Pools
from app.domain.errors import TARGET_NOT_ALLOWED, GatewayError, Refused
from app.domain.outside import Outside
from app.domain.webhook import Delivery, Message, Sending, Webhook, secret_of, signed_headers, topics_of
from app.gateway.webhook_notices import Notices
from app.notify.post import Posted, Poster, addresses_of
from app.observe.log import event
from app.observe.tenant_metrics import TenantMetrics
from app.store.catalogue.webhooks import NOTICES_AT_ONCE, WebhookStore

P = ParamSpec("P")
T = TypeVar("T")

LOOK_S: Final = 0.5
"""Seconds between two looks for messages that are due."""

AT_ONCE: Final = 16
"""Most messages that one gateway sends at the same time."""

OF_ONE_TENANT: Final = 4
"""Most of these to one tenant's webhooks: receivers that never answer hold up their own tenant's messages only."""

PAUSES_S: Final = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)
"""Seconds before the second try, the third, … with up to a fifth more by chance; a message is given up after 28 to 33
hours (ours, near the schedule that the Standard Webhooks specification proposes)."""

GONE: Final = 410
"""Status by which a receiver says that it wants no more: the message is given up at once."""

KEEP_S: Final = 3 * 86_400.0
"""Seconds that delivered messages and those given up are listed."""

FORGET_EVERY_S: Final = 3600.0
STOP_S: Final = 5.0
"""Seconds that requests get to end when the gateway stops; the others are tried again by whoever is next."""

USER_AGENT: Final = "lora-gateway-webhook/1"


class Webhooks:
    """Webhooks of this gateway's tenants: made, listed and deleted, and their messages delivered.

    Used on the event loop. master: the operator's secret, from which every webhook's is derived; b"": webhooks are off.
    """

    def __init__(
        self,
        store: WebhookStore,
        pools: Pools,
        outside: Outside,
        master: bytes,
        notices: Notices,
        metrics: TenantMetrics,
    ) -> None:
        self._store, self._pools, self._outside, self._master = store, pools, outside, master
        self._notices, self._metrics = notices, metrics
        self._poster = Poster(outside, lambda host, port: pools.names(addresses_of, host, port))
        self._running: dict[asyncio.Task[None], Sending] = {}
        self._wanted = asyncio.Event()
        self._accounting = asyncio.Semaphore()
        self._task: asyncio.Task[None] | None = None

    @property
    def on(self) -> bool:
        """True if webhooks can be made, and messages are sent."""
        return bool(self._master)

    async def create(self, tenant: str, url: str, topics: list[str] | None) -> tuple[Webhook, str]:
        """Make a webhook; return it and its secret. Raises Refused TARGET_NOT_ALLOWED, BAD_REQUEST, TOO_MANY_WEBHOOKS."""
        chosen = topics_of(topics)
        if not self.on:
            raise Refused(TARGET_NOT_ALLOWED, "the operator allows no target of webhooks", param="url")
        try:
            self._outside.check(url)
        except ValueError as error:
            raise Refused(TARGET_NOT_ALLOWED, f"the url {error}", param="url") from error
        made = await self._pools.store(self._store.create, tenant, url, chosen)
        event("webhook_created", tenant=tenant, webhook=made.id)
        return made, secret_of(self._master, made.id)

    async def of_tenant(self, tenant: str) -> tuple[Webhook, ...]:
        """Return a tenant's webhooks. Raises Unavailable."""
        return await self._pools.reading(self._store.of_tenant, tenant)

    async def delete(self, tenant: str, webhook: str) -> None:
        """Delete a webhook; what waits for it is not sent any more. Raises Refused WEBHOOK_NOT_FOUND."""
        await self._pools.store(self._store.delete, tenant, webhook)
        event("webhook_deleted", tenant=tenant, webhook=webhook)

    async def ping(self, tenant: str, webhook: str) -> str:
        """Have a ping sent, and return its id. Raises Refused WEBHOOK_NOT_FOUND, RATE_LIMITED, TARGET_NOT_ALLOWED."""
        if not self.on:
            raise Refused(TARGET_NOT_ALLOWED, "the operator allows no target of webhooks")
        return await self._pools.store(self._store.ping, tenant, webhook)

    async def messages(self, tenant: str, webhook: str) -> tuple[Message, ...]:
        """Return the newest messages of a webhook. Raises Refused WEBHOOK_NOT_FOUND."""
        return await self._pools.reading(self._store.messages, tenant, webhook)

    def start(self) -> None:
        """Start delivering, if webhooks are on. Needs a running loop."""
        if self.on:
            self._task = asyncio.create_task(self._deliver(), name="webhooks")

    async def stop(self) -> None:
        """Stop delivering. Messages that are not delivered yet are sent after the next start, or by another gateway."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._poster.close()

    async def _deliver(self) -> None:
        told, forget_at = False, 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._look()
                if time.monotonic() >= forget_at:
                    forget_at = time.monotonic() + FORGET_EVERY_S
                    await self._account(self._store.forget, KEEP_S)
                told = False
            except GatewayError as error:
                if not told:  # logged once, not twice a second; nothing is lost
                    event("webhooks_wait", logging.ERROR, why=error.message)
                told = True
            except Exception:  # a bug must not end the task
                logging.getLogger("gateway").exception("delivering to webhooks broke")

    async def _look(self) -> None:
        """Write the notices, and begin to send what is due. Raises Unavailable."""
        while notices := self._notices.first()[:NOTICES_AT_ONCE]:
            await self._account(self._store.notice, notices)
            self._notices.drop(len(notices))
        room = AT_ONCE - len(self._running)
        if room <= 0:
            return
        busy = Counter(sending.tenant for sending in self._running.values())
        for sending in await self._account(self._store.claim, room, OF_ONE_TENANT, busy):
            task = asyncio.create_task(self._send(sending), name=f"webhook {sending.webhook}")
            self._running[task] = sending
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._wanted.set()  # there is room for another one

    async def _account(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work of the catalogue, one at a time: inference waits for the same pool."""
        async with self._accounting:
            return await self._pools.accounts.to_the_end(work, *args, **kwargs)

    async def _send(self, sending: Sending) -> None:
        try:
            posted = await self._posted(sending)
        except Exception:  # a bug must not have it sent for ever
            logging.getLogger("gateway").exception("sending to a webhook broke")
            posted = Posted(None, "an error of the gateway")
        delivery, again_s = _next(posted, sending.attempt)
        self._metrics.webhook_sent(delivery if delivery is not Delivery.WAITING else "failed")
        if not posted.accepted:
            _tell(sending, posted, delivery)
        told = partial(self._store.record, status=posted.status, problem=posted.problem, again_s=again_s)
        try:
            await self._account(told, sending, delivery)
        except GatewayError as error:  # it is sent again when its lease has run out
            event("webhook_not_recorded", logging.ERROR, message=sending.message, why=error.message)

    async def _posted(self, sending: Sending) -> Posted:
        body = sending.body.encode()
        secret = secret_of(self._master, sending.webhook)
        headers = {"content-type": "application/json", "user-agent": USER_AGENT}
        headers |= signed_headers(secret, sending.message, int(time.time()), body)
        return await self._poster.post(sending.url, headers, body)


def _tell(sending: Sending, posted: Posted, delivery: Delivery) -> None:
    """Log that a message was not taken."""
    event(
        "webhook_failed",
        logging.ERROR if delivery is Delivery.GIVEN_UP else logging.WARNING,
        tenant=sending.tenant,
        webhook=sending.webhook,
        message=sending.message,
        attempt=sending.attempt,
        status=posted.status,
        why=posted.problem,
        given_up=delivery is Delivery.GIVEN_UP,
    )


def _next(posted: Posted, attempt: int) -> tuple[Delivery, float]:
    """Return the state of a message after a try, and the seconds until the next one."""
    if posted.accepted:
        return Delivery.DELIVERED, 0.0
    if posted.status == GONE or attempt > len(PAUSES_S):
        return Delivery.GIVEN_UP, 0.0
    pause = PAUSES_S[attempt - 1]
    return Delivery.WAITING, pause * random.uniform(1.0, 1.2)  # noqa: S311 - spreads retries, protects nothing
