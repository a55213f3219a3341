"""Audit trail: hands acts to the audit log, and keeps those that it could not write for another try."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from app.concurrency.pools import Pools
from app.domain.audit_entry import Act
from app.domain.errors import STORE_FAILED, GatewayError
from app.observe.log import event
from app.store.audit_file import AuditFile
from app.store.catalogue.audit_log import AuditLog

AGAIN_S: Final = 1.0
"""Seconds between two tries to write what could not be written."""

MOST: Final = 10_000
"""Most acts that wait: some megabytes. Further ones stand in the log alone."""

AT_ONCE: Final = 500
"""Acts of one transaction."""


class AuditTrail:
    """Way of acts into the audit log. Used on the event loop. file: has their entries as well."""

    def __init__(self, log: AuditLog, pools: Pools, file: AuditFile | None = None) -> None:
        self._log, self._pools, self._file = log, pools, file
        self._waiting: deque[Act] = deque()
        self._writing = asyncio.Lock()
        self._failing = False  # then only the task tries: callers must not wait for a catalogue that hangs, one by one
        self._task: asyncio.Task[None] | None = None

    async def record(self, act: Act) -> None:
        """Record an act: it is in the audit log when this returns, or is written as soon as the catalogue can be.

        The gateway's log has it at once.
        """
        event(
            "audited",
            key=act.key,
            tenant=act.tenant,
            action=act.action,
            target=act.target,
            status=act.status,
            code=act.code,
        )
        if len(self._waiting) >= MOST:
            event("audit_lost", logging.ERROR, action=act.action, target=act.target)
            return
        self._waiting.append(act)
        if self._failing:
            return
        try:
            await asyncio.shield(self._write())
        except GatewayError as error:
            event("audit_waits", logging.ERROR, why=error.message, waiting=len(self._waiting))

    def start(self) -> None:
        """Start the tries. Needs a running loop."""
        self._task = asyncio.create_task(self._again(), name="audit trail")

    async def stop(self) -> None:
        """Stop the tries after a last one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._write()
        except GatewayError as error:
            event("audit_lost", logging.ERROR, why=error.message, acts=len(self._waiting))

    async def _write(self) -> None:
        """Write everything that waits. Raises Unavailable."""
        async with self._writing:
            self._failing = True
            while self._waiting:
                some = [self._waiting[number] for number in range(min(AT_ONCE, len(self._waiting)))]
                try:
                    await self._pools.store.to_the_end(self._append, some)
                except GatewayError as error:
                    if error.code is not STORE_FAILED:  # away, busy or full: it passes
                        raise
                    await self._write_first(error)
                    continue
                for _ in some:
                    self._waiting.popleft()
            self._failing = False

    async def _write_first(self, why: GatewayError) -> None:
        """Write the first act by itself, and drop it if the catalogue takes others and not this one. Raises Unavailable."""
        first = self._waiting[0]
        try:
            await self._pools.store.to_the_end(self._append, [first])
        except GatewayError:
            await self._pools.store.to_the_end(self._log.after, 0, 1)  # raises if nothing can be read either
            event("audit_lost", logging.ERROR, why=why.message, action=first.action, target=first.target)
        self._waiting.popleft()

    def _append(self, acts: Sequence[Act]) -> None:
        entries = self._log.append(acts)
        if self._file is not None:
            self._file.write(entries)

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            try:
                await self._write()
            except GatewayError:  # logged when the first act could not be written
                continue
            except Exception:  # a bug must not end the task
                logging.getLogger("gateway").exception("the audit trail broke")
