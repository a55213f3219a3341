"""Audit job: `store audit`, made now and then by the gateway itself, in a thread of its own."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
"""Seconds from the start to the first audit: the engine is loaded first, most of the time."""

BYTES_PER_S: Final = 64 << 20
"""Bytes of artefacts that an audit reads in a second: it takes a small share of the disk and of one core from chat."""

MAX_LOGGED: Final = 100
"""Findings logged one by one; their number is always told whole."""


@dataclass(frozen=True, slots=True)
class Audited:
    """What is audited: the data directory, the catalogue's URL, and each engine at its own URL, all with one key.

    artefacts: their directory, where that is not in the data directory. engines: those there are now, with what keeps them
    filled; none where their lists say nothing.
    """

    data: Path
    catalogue_url: str
    engines: Callable[[], Sequence[tuple[str, Reconciler]]] = tuple
    engine_key: str | None = None
    artefacts: Path | None = None
    store_url: str | None = None


def engines_of(engine: HttpEngine | Fleet, reconciler: Reconciler | Fleet) -> Sequence[tuple[str, Reconciler]]:
    """The engines there are now: each one's URL, and what keeps it filled."""
    if isinstance(engine, Fleet):
        return [(member.engine.url, member.reconciler) for member in engine.members]
    return [(engine.url, one) for one in reconciler.each]


class Auditor:
    """Thread that audits the store now and then; it looks at what is kept, not at what the gateway believes.

    Keys in files are looked for by the command only: that reads everything, the logs too.
    """

    def __init__(self, uploads: Uploads, what: Audited, every_s: float) -> None:
        """every_s: seconds from the end of one audit to the next; 0: none is made."""
        self._uploads = uploads
        self._what = what
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)  # a long look delays no exit

    def start(self) -> None:
        """Begin; the first audit is a minute away, or less where they are to be more frequent."""
        if self._every_s:
            self._thread.start()

    def stop(self) -> None:
        """No audit begins any more; one under way is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        wait = min(FIRST_AUDIT_S, self._every_s)
        while not self._stopping.wait(wait):
            wait = self._every_s
            try:
                self.look()
            except (GatewayError, OSError) as error:
                event("not_audited", logging.ERROR, why=str(error))
            except Exception:  # the next one may go well
                logging.getLogger("gateway").exception("the audit broke")

    def look(self) -> Audit:
        """One audit: findings to the log, their number to the metrics. Blocking, in no event loop. Raises GatewayError."""
        found = self._once()
        if found.findings and not self._stopping.wait(PATIENCE_S):
            found = in_both(found, self._once())
        for one in found.findings[:MAX_LOGGED]:
            event("audit_finding", logging.ERROR, invariant=one.invariant, where=one.where, what=one.what)
        self._uploads.components.metrics.audited(len(found.findings))
        level = logging.ERROR if found.findings else logging.INFO
        skipped = [f"{one.what}: {one.why}" for one in found.skipped]
        event("audited", level, broken=len(found.findings), skipped=skipped, **found.counts)
        return found

    def _once(self) -> Audit:
        what = self._what
        listed, asked, unasked = self._listed()
        found = audit(
            what.data,
            what.catalogue_url,
            listed=listed,
            artefacts=what.artefacts,
            store_url=what.store_url,
            between=lambda read: self._stopping.wait(read / BYTES_PER_S),
            rehash=False,  # object storage may be far away, and reading it cost money: the command does it
        )
        return found.adding(counts={"engines": asked} if asked else {}, skipped=unasked)

    def _listed(self) -> tuple[Mapping[str, Card] | None, int, tuple[Skipped, ...]]:
        """Lists of the engines that are asked (None: of none), how many those are, and what is said of the others.

        One that is away or still being filled is not asked: the gauges of the engine say that.
        """
        desired = self._uploads.components.desired.state.adapters.keys()
        there = self._what.engines()
        full = [url for url, one in there if one.engine_up and (one.loaded | one.failures.keys()) >= desired]
        if not there:
            return None, 0, (Skipped("engines", "their lists say nothing: there is none, or they fetch by themselves"),)
        left = len(there) - len(full)
        unasked = (Skipped("engines", f"{left} of {len(there)} are away or being filled"),) if left else ()
        if not full:
            return None, 0, unasked
        try:
            return asyncio.run(engine_lists(full, self._what.engine_key)), len(full), unasked
        except Unavailable as error:
            return None, 0, (Skipped("engines", error.message),)
