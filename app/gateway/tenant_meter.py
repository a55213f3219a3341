"""Tenant meter: counts what tenants use of their limits, together with the other gateways of the catalogue.

A request takes from a portion in this process's memory. A portion is drawn from the catalogue when it is too small, and
the rest is given back when it was not used for a moment: nothing is allowed twice, and a gateway that is killed keeps its
portions from the others for no longer than they take to refill. Tokens are taken before a request by an estimate and
corrected after it by the engine's counts; a tenant that used more than was left waits until that has refilled.

A gateway whose catalogue is its own counts by the minute in memory only, and any gateway does so while the catalogue does
not answer: requests go on, each gateway allows the whole limit, and what was used is told when the catalogue is back.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from app.concurrency.pools import Pools
from app.domain.errors import GatewayError
from app.domain.tenant_limits import DAY_S, RATES, Flow, Stock, TenantLimits
from app.domain.usage import one_request
from app.gateway.tenant_account import Account, BucketAccount, SlotAccount, Terms, Waiter
from app.gateway.webhook_notices import Notices
from app.observe.log import event
from app.observe.tenant_metrics import TenantMetrics
from app.store.catalogue.limits import Draw, LimitStore

SYNC_S: Final = 0.4
"""Seconds between two looks for limits that another gateway set, and between two returns of what is not used."""

BYTES_PER_TOKEN: Final = 4
"""Bytes of a request's body for which one token of its prompt is expected: OpenAI's estimate."""

AT_ONCE: Final = 20
"""Draws of one transaction, which keeps those of other gateways for the same tenants waiting: some milliseconds."""

_Drawing = tuple[Account, Draw, tuple[Waiter, ...]]


class TenantMeter:
    """Meter of what tenants use. Used on the event loop, except for its making. shared: other gateways draw as well."""

    def __init__(
        self, store: LimitStore, pools: Pools, metrics: TenantMetrics, notices: Notices, *, shared: bool
    ) -> None:
        """Read the limits of every tenant. Blocking. Raises Unavailable."""
        self._store, self._pools, self._shared = store, pools, shared
        self._metrics, self._notices = metrics, notices
        self._id = secrets.token_hex(8)
        self._limits: dict[str, TenantLimits] = {}
        self._accounts: dict[tuple[str, Flow], Account] = {}
        self._active: dict[Account, None] = {}  # those that may have to draw or to give back
        self._revision = 0
        self._wanted = asyncio.Event()
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self._apply(store.changed_since(0))

    async def set(self, tenant: str, limits: TenantLimits) -> None:
        """Replace a tenant's limits: in force here when this returns, elsewhere within a second. Raises Unavailable."""
        await self._pools.store(self._store.set, tenant, limits)
        await self.follow()

    async def stock(self, tenant: str) -> tuple[TenantLimits, Stock]:
        """Return a tenant's limits and what it stores. Raises Unavailable."""
        return await self._pools.reading(self._store.stock, tenant)

    async def count(self, tenant: str, flow: Flow) -> None:
        """Count one request, upload or screening. Raises Refused RATE_LIMITED, with the time after which there is room."""
        if (account := self._account(tenant, flow)) is not None:
            await account.take(1.0)

    def tally(self, tenant: str, body_bytes: int) -> "Tally | None":
        """Return the tally of an inference request; None if its tenant's tokens and concurrency are unlimited.

        body_bytes: length of the request's body, by which the tokens of its prompt are estimated.
        """
        tokens, slots = self._account(tenant, Flow.TOKENS), self._account(tenant, Flow.CONCURRENT)
        if tokens is None and slots is None:
            return None
        return Tally(tokens, slots, body_bytes // BYTES_PER_TOKEN)

    def headers(self, tenant: str) -> dict[str, str]:
        """Return OpenAI's x-ratelimit headers for a tenant's requests and tokens, as far as they are limited."""
        found: dict[str, str] = {}
        for flow in (Flow.REQUESTS, Flow.TOKENS):
            if (account := self._account(tenant, flow)) is not None:
                found |= {
                    f"x-ratelimit-limit-{flow}": str(account.limit),
                    f"x-ratelimit-remaining-{flow}": str(account.left),
                    f"x-ratelimit-reset-{flow}": f"{account.seconds_until(account.limit):.3f}s",
                }
        return found

    async def follow(self) -> None:
        """Read the limits that were set since the last look, and put them in force. Raises Unavailable."""
        self._apply(await self._pools.accounts(self._store.changed_since, self._revision))

    def start(self) -> None:
        """Start the task. Needs a running loop."""
        self._task = asyncio.create_task(self._serve(), name="tenant limits")

    async def stop(self) -> None:
        """Stop the task, and give back what is not used."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            for _ in range(2):  # what was used lately is given back at the second
                await self._draw(sync=True)
            if self._shared:
                await self._pools.accounts(self._store.leave, self._id)
        except GatewayError as error:  # the buckets refill and the slots lapse by themselves
            event("limits_not_returned", logging.WARNING, why=error.message)

    def _account(self, tenant: str, flow: Flow) -> Account | None:
        limits = self._limits.get(tenant)
        limit = (self._store.default(tenant) if limits is None else limits).of(flow)
        if limit is None:
            return None
        account = self._accounts.get((tenant, flow))
        if account is None:
            alone = not self._shared and RATES[flow].period_s != DAY_S  # a day's are to outlive a restart
            kind = SlotAccount if flow is Flow.CONCURRENT else BucketAccount
            account = kind(Terms(tenant, flow, alone, self._touched, self._refused), limit)
            self._accounts[tenant, flow] = account
        return account

    def _refused(self, tenant: str, flow: Flow) -> None:
        self._metrics.limited(tenant, flow)
        self._notices.quota_reached(tenant, RATES[flow].field)

    def _touched(self, account: Account) -> None:
        if not account.terms.alone:
            self._active[account] = None
            if account.waiters:
                self._wanted.set()

    def _apply(self, changed: tuple[tuple[str, TenantLimits, int], ...]) -> None:
        for tenant, limits, revision in changed:
            if revision <= self._revision:  # two reads at the same time: this one came later
                continue
            self._limits[tenant] = limits
            for flow in Flow:
                if (account := self._accounts.get((tenant, flow))) and (limit := limits.of(flow)) is not None:
                    account.relimit(limit)
            self._revision = revision

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        sync_at = loop.time() + SYNC_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(sync_at):
                    await self._wanted.wait()
            self._wanted.clear()
            sync = loop.time() >= sync_at
            try:
                await self._draw(sync=sync)
                if sync:
                    await self.follow()
                self._failing = False
            except GatewayError as error:
                if not self._failing:  # logged once, not twice a second
                    event("limits_by_this_gateway_alone", logging.ERROR, why=error.message)
                self._failing = True
            except Exception:  # a bug must not end the task: requests would wait for ever
                logging.getLogger("gateway").exception("drawing limits broke")
            if sync:
                sync_at = loop.time() + SYNC_S

    async def _draw(self, *, sync: bool) -> None:
        """Draw for requests that wait; at a sync, give back what is not used. Raises Unavailable: accounts go on alone."""
        drawing: list[_Drawing] = []
        for account in list(self._active):
            if (draw := account.to_draw(sync=sync)) is not None:
                drawing.append((account, draw, account.waiters))
            elif sync and account.idle:
                del self._active[account]
        drawing.sort(key=lambda one: not one[2])  # no request waits for what is only given back
        while drawing:
            some, drawing = drawing[:AT_ONCE], drawing[AT_ONCE:]
            try:
                draws = [draw for _, draw, _ in some]
                drawn = await self._pools.accounts.to_the_end(self._store.draw, self._id, draws)
            except BaseException:
                for account, draw, waiters in (*some, *drawing):
                    account.failed(draw)
                    account.serve(waiters)
                raise
            for (account, _, waiters), result in zip(some, drawn, strict=True):
                account.drew(result)
                account.serve(waiters)


class Tally:
    """Slot and tokens of one inference request. A context manager: leaving it gives the slot back, and the tokens unless
    the engine had the request.

    prompt_tokens: estimate, for answers that do not tell.
    """

    def __init__(self, tokens: Account | None, slots: Account | None, prompt_tokens: int) -> None:
        self._tokens, self._slots, self._prompt_tokens = tokens, slots, prompt_tokens
        self._loop = asyncio.get_running_loop()
        self._slot = self._told = False
        self._taken = self._asked = 0.0

    async def open(self, tokens: int) -> None:
        """Take a slot, and tokens for the prompt and the most `tokens` that the engine may write. Raises Refused.

        A request for more than a minute's tokens takes a minute's.
        """
        if self._slots is not None:
            await self._slots.take(1.0)
            self._slot = True
        if self._tokens is not None:
            wanted = min(float(self._prompt_tokens + tokens), float(self._tokens.limit))
            await self._tokens.take(wanted)
            self._taken = self._asked = wanted

    def used(self, counts: Mapping[str, Any] | None) -> None:
        """Correct the tokens by OpenAI's counts. What they do not tell of the prompt stays estimated.

        Empty ones: the engine did nothing. None: nobody knows, since the client left before the end; then it is what was
        asked for. May be called in any thread: a stream that nobody closes is collected in one.
        """
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._count(counts)
        else:
            self._loop.call_soon_threadsafe(self._count, counts)

    def _count(self, counts: Mapping[str, Any] | None) -> None:
        self._told = True
        if counts is None:
            self._correct(self._asked)  # also if the slot was given back before
            return
        told = one_request(counts)
        prompt = told.prompt_tokens or (min(float(self._prompt_tokens), self._asked) if counts else 0.0)
        self._correct(prompt + told.completion_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._slot and self._slots is not None:
            self._slots.put_back(1.0)
            self._slot = False
        if not self._told:
            self._correct(0.0)

    def _correct(self, tokens: float) -> None:
        if self._tokens is not None:
            self._tokens.put_back(self._taken - tokens)
            self._taken = tokens
