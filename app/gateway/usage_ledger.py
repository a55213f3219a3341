"""Usage ledger: counts in memory what requests use, and adds it to the catalogue once a second."""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from app.concurrency.pools import Pools
from app.domain.api_keys import Key
from app.domain.errors import GatewayError
from app.domain.usage import Usage, UsedBy, hour_of, one_request
from app.observe.log import event
from app.observe.tenant_metrics import TenantMetrics
from app.serve.asker import Used
from app.serve.routing_table import Target
from app.store.catalogue.usage import UsageStore

FLUSH_S: Final = 0.9
"""Seconds between two batches: a kill loses at most a second's usage."""

FORGET_EVERY_S: Final = 3600.0
"""Seconds between two deletions of usage that is too old."""

_NOTHING: Final = Usage()


class UsageLedger:
    """Usage of this gateway process. Used on the event loop. keep_days: days after which it is deleted. metrics: count it
    as well."""

    def __init__(self, store: UsageStore, pools: Pools, keep_days: int, metrics: TenantMetrics) -> None:
        self._store, self._pools, self._keep_days, self._metrics = store, pools, keep_days, metrics
        self._id = secrets.token_hex(8)
        self._counted: dict[UsedBy, Usage] = {}
        self._batch: Mapping[UsedBy, Usage] = {}  # being written, unchanged until it is known to be
        self._number = 0
        self._flushing = asyncio.Lock()
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def counter(self, key: Key) -> Used:
        """Return the counter of a request that came with this key."""
        return partial(self._count, key.tenant, key.name)

    def start(self) -> None:
        """Start writing. Needs a running loop."""
        self._task = asyncio.create_task(self._write(), name="usage")

    async def stop(self) -> None:
        """Stop the task, and write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self.flush()
            await self.flush()  # what was counted while the batch before could not be written
        except GatewayError as error:
            event("usage_lost", logging.ERROR, why=error.message)

    async def settle(self) -> None:
        """Write what was counted so far, unless the catalogue could not be written lately. Raises Unavailable."""
        if not self._failing:
            await self.flush()

    async def flush(self) -> None:
        """Write what was counted so far; it is then in the catalogue. Raises Unavailable: it is tried again."""
        async with self._flushing:
            if not self._batch:
                self._batch, self._counted = self._counted, {}
                if not self._batch:
                    return
                self._number += 1
            self._failing = True
            await self._pools.accounts.to_the_end(self._store.add, self._id, self._number, self._batch)
            self._batch, self._failing = {}, False

    def _count(self, tenant: str, key: str, target: Target, counts: Mapping[str, Any] | None) -> None:
        who = UsedBy(hour_of(datetime.now(UTC)), tenant, key, target.adapter or "", target.version or 0)
        used = one_request(counts)
        self._counted[who] = self._counted.get(who, _NOTHING) + used
        self._metrics.used(tenant, used)

    async def _write(self) -> None:
        told, forget_at = False, 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
                if loop.time() >= forget_at:
                    forget_at = loop.time() + FORGET_EVERY_S
                    oldest = hour_of(datetime.now(UTC) - timedelta(days=self._keep_days))
                    await self._pools.accounts(self._store.forget_before, oldest)
                told = False
            except GatewayError as error:
                if not told:  # logged once, not each second; nothing is lost while the process lives
                    event("usage_not_written", logging.ERROR, why=error.message)
                told = True
            except Exception:  # a bug must not end the task
                logging.getLogger("gateway").exception("writing usage broke")
