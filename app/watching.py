"""What metrics ask the rooms at each scrape, rather than being told; and the audit a running gateway makes of itself."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from app.audit import PATIENCE_S, both, engine_lists
from app.domain.shares import Resource, Shares
from app.errors import GatewayError, Unavailable
from app.load.engine import HttpEngine
from app.load.fleet import Fleet
from app.load.member import Member
from app.load.reconcile import Reconciler
from app.observe.log import event
from app.observe.metrics import Metrics
from app.pipeline import Pipeline
from app.rooms import Rooms
from app.store.audit import Audit, Skipped, audit
from app.store.audit_engines import Card
from app.upload.quarantine import Quarantine

FIRST_AUDIT_S: Final = 60.0
"""Seconds from the start to the first audit: the engine is loaded first, most of the time."""

MAX_LOGGED: Final = 100
"""Findings logged one by one; their number is always told whole."""


def watch_waiting(metrics: Metrics, shares: Shares, quarantine: Quarantine, floor_bytes: int) -> None:
    """Uploads under way, and the room they wait in. floor_bytes: uploads are refused when less is free."""
    gauges = metrics.uploads
    gauges.store_reserve.set(floor_bytes)
    metrics.watch(gauges.in_progress, lambda: shares.in_use(Resource.UPLOADS))
    metrics.watch(gauges.quarantine_files, lambda: quarantine.open_files)
    metrics.watch(gauges.quarantine_bytes, lambda: quarantine.open_bytes)


def watch_house(pipeline: Pipeline) -> None:
    """Versions in work, the store's disk, and what the engine holds."""
    rooms, metrics = pipeline.rooms, pipeline.rooms.metrics
    store, reconciler, engine = rooms.blobs.root, rooms.reconciler, metrics.engine
    metrics.watch(metrics.uploads.screening, lambda: pipeline.working)
    metrics.watch(metrics.uploads.store_free, lambda: shutil.disk_usage(store).free)
    metrics.watch(metrics.uploads.store_size, lambda: shutil.disk_usage(store).total)
    metrics.watch(engine.up, lambda: reconciler.engine_up)
    metrics.watch(engine.resident, lambda: len(reconciler.loaded))
    metrics.watch(engine.desired, lambda: len(pipeline.publishing.desired()))
    metrics.watch(engine.failing, lambda: len(reconciler.failures))


def watch_fleet(metrics: Metrics, fleet: Fleet) -> None:
    """Each engine of several, as they come and go: whether it answers, what it holds, what is in flight on it."""
    gauges = metrics.fleet

    def watch(member: Member) -> None:
        label = str(member.number)
        metrics.watch(gauges.up.labels(label), partial(_up, member))
        metrics.watch(gauges.resident.labels(label), partial(_resident, member))
        metrics.watch(gauges.in_flight.labels(label), partial(_in_flight, member))

    def forget(member: Member) -> None:
        for metric in (gauges.up, gauges.resident, gauges.in_flight, gauges.asked):
            metric.remove_by_labels({"engine": str(member.number)})

    fleet.joined, fleet.parted = watch, forget
    for member in fleet.members:
        watch(member)


def _up(member: Member) -> float:
    return member.keeper.engine_up


def _resident(member: Member) -> float:
    return len(member.keeper.loaded)


def _in_flight(member: Member) -> float:
    return member.flying


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
        return [(member.engine.url, member.keeper) for member in engine.members]
    return [(engine.url, one) for one in reconciler.each]


class Auditor:
    """`store audit`, made now and then by the gateway itself in a thread; it looks at what is kept, not at what we believe.

    Keys in files are looked for by the command only: that reads everything, the logs too.
    """

    def __init__(self, pipeline: Pipeline, what: Audited, every_s: float) -> None:
        """every_s: seconds from the end of one audit to the next; 0: none is made."""
        self._pipeline = pipeline
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
            found = both(found, self._once())
        for one in found.findings[:MAX_LOGGED]:
            event("audit_finding", logging.ERROR, invariant=one.invariant, where=one.where, what=one.what)
        self._pipeline.rooms.metrics.audited(len(found.findings))
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
            rehash=False,  # object storage may be far away, and reading it cost money: the command does it
        )
        return found.adding(counts={"engines": asked} if asked else {}, skipped=unasked)

    def _listed(self) -> tuple[Mapping[str, Card] | None, int, tuple[Skipped, ...]]:
        """Lists of the engines that are asked (None: of none), how many those are, and what is said of the others.

        One that is away or still being filled is not asked: the gauges of the engine say that.
        """
        desired = self._pipeline.publishing.desired().keys()
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


def readiness_of(engine: HttpEngine | Fleet, rooms: Rooms) -> Callable[[], Awaitable[dict[str, str | None]]]:
    """Check behind /ready."""
    reconciler, peers, in_thread = rooms.reconciler, rooms.peers, rooms.pools.readiness

    async def readiness() -> dict[str, str | None]:
        """Part → what is wrong with it, or None. The engine counts as ready once its adapters were looked after."""
        up = reconciler.engine_up and await engine.healthy()
        return {
            "reference": await in_thread(_wrong_with, "reference", rooms.reference.check_unchanged),
            "store": await in_thread(_wrong_with, "store", rooms.blobs.check_writable),
            "engine": None if up else _why_down(reconciler),
            **({} if peers is None or peers.fresh else {"catalogue": "not read for too long"}),
        }

    return readiness


def details_of(reconciler: Reconciler | Fleet) -> dict[str, str]:
    """Details of /ready: what is known of the model behind each engine."""
    notes = {one.number: one.objection.model.note for one in reconciler.each if one.objection.model is not None}
    if len(set(notes.values())) > 1:
        return {"model": "; ".join(f"engine {number}: {note}" for number, note in notes.items())}
    return {"model": next(iter(notes.values()), "not asked yet")}


def _why_down(reconciler: Reconciler | Fleet) -> str:
    return next((one.objection.why for one in reconciler.each if one.objection.why), "starting or away")


def _wrong_with(part: str, check: Callable[[], None]) -> str | None:
    """For everybody's eyes, so without the message, which may name a path."""
    try:
        check()
    except GatewayError as error:
        event("not_ready", logging.WARNING, part=part, why=error.message)
        return "not in order; the log says why"
    return None
