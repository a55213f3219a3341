"""Audit job: the gateway runs `store audit` on itself at intervals, in a thread of its own."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.domain.errors import GatewayError, Unavailable
from app.gateway.engine_lists import PATIENCE_S, engine_lists, in_both
from app.gateway.uploads import Uploads
from app.load.client.engine import HttpEngine
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.observe.log import event
from app.store.audit.audit import Audit, Skipped, audit
from app.store.audit.engines import Card

FIRST_AUDIT_S: Final = 60.0
"""Seconds from the start to the first audit: by then the engine usually holds its adapters."""

BYTES_PER_S: Final = 64 << 20
"""Most bytes of artefacts that an audit reads per second: it takes only a small share of the disk and of one core from chat
requests."""

MAX_LOGGED: Final = 100
"""Most findings logged one by one; their total number is always logged."""


@dataclass(frozen=True, slots=True)
class Audited:
    """Scope of an audit: the data directory, the catalogue's URL, and the engines, all with one key.

    engines: returns the URL and the reconciler of each present engine; nothing if the engines' lists cannot be audited.
    artefacts: their directory, if it is not in the data directory. store_url: object storage that holds the artefacts.
    """

    data: Path
    catalogue_url: str
    engines: Callable[[], Sequence[tuple[str, Reconciler]]] = tuple
    engine_key: str | None = None
    artefacts: Path | None = None
    store_url: str | None = None


@dataclass(frozen=True, slots=True)
class LastAudit:
    """Result of the last audit. at: UTC, its end. seconds: its duration. found: its confirmed findings."""

    at: datetime
    seconds: float
    found: Audit


def engines_of(engine: HttpEngine | Fleet, reconciler: Reconciler | Fleet) -> Sequence[tuple[str, Reconciler]]:
    """Return the URL and the reconciler of each present engine."""
    if isinstance(engine, Fleet):
        return [(member.engine.url, member.reconciler) for member in engine.members]
    return [(engine.url, one) for one in reconciler.each]


class Auditor:
    """Thread that audits the store at intervals. It examines the stored data, not the gateway's state in memory.

    It does not search files for keys: that reads everything, including the logs, and is left to the command.
    """

    def __init__(self, uploads: Uploads, scope: Audited, every_s: float) -> None:
        """every_s: seconds from the end of one audit to the start of the next; 0: no audits."""
        self._uploads = uploads
        self._scope = scope
        self._every_s = every_s
        self.last: LastAudit | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)  # does not delay exit

    @property
    def every_s(self) -> float:
        """Seconds from the end of one audit to the start of the next; 0: no audits."""
        return self._every_s

    def start(self) -> None:
        """Start the thread, unless there are to be no audits. The first runs after FIRST_AUDIT_S, or every_s if shorter."""
        if self._every_s:
            self._thread.start()

    def stop(self) -> None:
        """Prevent further audits; does not wait for one in progress."""
        self._stopping.set()

    def _run(self) -> None:
        wait = min(FIRST_AUDIT_S, self._every_s)
        while not self._stopping.wait(wait):
            wait = self._every_s
            try:
                self.look()
            except (GatewayError, OSError) as error:
                event("not_audited", logging.ERROR, why=str(error))
            except Exception:  # the next audit may succeed
                logging.getLogger("gateway").exception("the audit broke")

    def look(self) -> Audit:
        """Run one audit: write its findings to the log and their number to the metrics.

        Findings count only if a second audit, PATIENCE_S later, confirms them; once `stop` was called none does.
        Blocking; must not run in a thread with a running event loop. Raises GatewayError.
        """
        started = time.monotonic()
        found = self._once()
        if found.findings:
            if self._stopping.wait(PATIENCE_S):
                return found  # unconfirmed, so neither logged nor counted
            found = in_both(found, self._once())
        for one in found.findings[:MAX_LOGGED]:
            event("audit_finding", logging.ERROR, invariant=one.invariant, where=one.where, what=one.what)
        self.last = LastAudit(datetime.now(UTC), time.monotonic() - started, found)
        self._uploads.components.metrics.audited(len(found.findings))
        level = logging.ERROR if found.findings else logging.INFO
        skipped = [f"{one.what}: {one.why}" for one in found.skipped]
        event("audited", level, broken=len(found.findings), skipped=skipped, **found.counts)
        return found

    def _once(self) -> Audit:
        scope = self._scope
        listed, asked, unasked = self._listed()
        found = audit(
            scope.data,
            scope.catalogue_url,
            listed=listed,
            artefacts=scope.artefacts,
            store_url=scope.store_url,
            between=lambda read: self._stopping.wait(read / BYTES_PER_S),
            rehash=False,  # reading object storage may be slow and may cost money: only the command does it
        )
        return found.adding(counts={"engines": asked} if asked else {}, skipped=unasked)

    def _listed(self) -> tuple[Mapping[str, Card] | None, int, tuple[Skipped, ...]]:
        """Return the combined list of the engines asked (None if none was), their number, and the skipped parts.

        An engine that is down or still being filled is not asked: the engine's gauges report that.
        """
        desired = self._uploads.components.desired.state.adapters.keys()
        present = self._scope.engines()
        full = [url for url, one in present if one.engine_up and (one.loaded | one.failures.keys()) >= desired]
        if not present:
            why = "their lists are not audited: there is no engine, or the engines fetch adapters by themselves"
            return None, 0, (Skipped("engines", why),)
        left = len(present) - len(full)
        unasked = (Skipped("engines", f"{left} of {len(present)} are away or being filled"),) if left else ()
        if not full:
            return None, 0, unasked
        try:
            return asyncio.run(engine_lists(full, self._scope.engine_key)), len(full), unasked
        except Unavailable as error:
            return None, 0, (Skipped("engines", error.message),)
