"""Uploads: one adapter's way through upload → validate → screen → prune → store → load → serve; nothing else knows it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

from app.domain.api_keys import NOBODY, Uploader
from app.domain.errors import (
    CODES,
    NAME_TAKEN,
    REJECTED,
    RESCREEN_FAILED,
    SCREENING_FAILED,
    SCREENING_KILLED,
    SCREENING_TIMEOUT,
    GatewayError,
    Refused,
    Stage,
    Unavailable,
)
from app.domain.names import AdapterName
from app.domain.verdict import Outcome, Verdict
from app.domain.version_state import ENDED, IN_FLIGHT, SERVABLE, State
from app.gateway.components import Components
from app.gateway.garbage import GarbageCollector
from app.gateway.publishing import Publishing
from app.gateway.upload_steps import UploadSteps, whose
from app.gateway.version_refused import VersionRefused
from app.observe.log import event
from app.store.catalogue.beginning import Begun, Ended, New, Retry, Same
from app.store.catalogue.tables import VersionRow
from app.store.cluster.peers import TakenOver
from app.upload.receive import PendingUpload, SealedUpload

ORPHAN_LOOKS: Final = 10
ORPHAN_LOOK_S: Final = 0.1
"""Looks that find nobody at work on a version in flight, and seconds between them, before it is given up."""

TAKEOVERS: Final = 3
"""Times one upload is begun again because another gateway took this one for dead. More than one means a gateway that is
too slow to be told from a dead one."""


class Uploads:
    """Uploads in, served versions out. Everything that blocks runs in threads; chat never waits for it."""

    def __init__(self, components: Components, publishing: Publishing, garbage: GarbageCollector) -> None:
        self.components = components
        self.publishing = publishing
        self._garbage = garbage
        self._working: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._beginning: Counter[str] = Counter()  # names whose versions are being found or begun, and by how many

    async def register(
        self, upload: PendingUpload, *, wait: bool, after: int | None = None, by: Uploader = NOBODY
    ) -> Begun:
        """Take one sealed upload through every stage: New or Retry when this call made the version, Same otherwise.

        The version is `ready`, or `stored` when the engine is away or `wait` is False: then it is published as soon as
        the engine holds it. after: refuse a new version unless the newest so far has this number. by: whose upload it
        is. Raises Refused or Unavailable; what was refused stays in the catalogue with its report.
        """
        c = self.components
        name = AdapterName.parse(upload.name, frozenset({c.target.name}))
        begin = partial(c.catalogue.begin, name, upload.received, c.parameters, after=after, by=by)
        begun = await self._begin(name.text, begin)
        if isinstance(begun, Same):
            begun = await self._came_before(begun.row, after, by)
        if not isinstance(begun, Same) and begun.row.state is State.RECEIVED:
            begun = await self._work(begun, upload, after, by)
            c.metrics.uploaded("known" if isinstance(begun, Same) else str(begun.row.outcome))
            await self.publishing.stored(begun.row)
        else:
            row = begun.row
            if await asyncio.shield(c.pools.screening.start(self._restored, row, upload.take())):
                event("restored", logging.WARNING, adapter=row.name, version=row.number, artefact=row.artefact)
                await self.publishing.stored(row)
            c.metrics.uploaded("known")
        at_once = wait or begun.row.emptied  # an emptied version waits for no engine
        return replace(begun, row=await self.publishing.load(begun.row)) if at_once else begun

    async def _came_before(self, row: VersionRow, after: int | None, by: Uploader) -> Begun:
        """The version there is of these bytes, once nobody works on it: Same, or begun again if it failed, under its own
        number, for repeating must not fill the catalogue and the disk.

        Raises VersionRefused if it would end as before, or if another upload tried again first and failed.
        """
        row = await self._when_done(row)
        if (known := _known_refusal(row)) is not None:
            raise self._counted(known)
        if row.state not in ENDED:
            return Same(row)
        slow = self._worker(row.key)
        if slow is not None:  # given up by another gateway: let it come to its end
            await asyncio.wait({slow})
        begun = await self._begin(str(row.name), partial(self._again, row, after, by))
        if not isinstance(begun, Same):
            if begun.row.state is State.STORED:
                await self.publishing.stored(begun.row)
            return begun
        if (row := await self._when_done(begun.row)).state in ENDED:
            raise self._counted(_refusal(row))
        return Same(row)

    def _again(self, row: VersionRow, after: int | None, by: Uploader) -> Begun:
        """Blocking."""
        c, given = self.components, (row.name, row.received, row.parameters)
        intact = row.artefact is not None and c.blobs.is_intact(row.artefact)
        begun = c.catalogue.begin(*given, after=after, by=by, ended=Ended(row.number, intact))
        return begun if isinstance(begun, Same) else replace(begun, row=c.progress.report_again(begun.row))

    def _counted(self, error: VersionRefused) -> VersionRefused:
        self.components.metrics.upload_refused(error)
        return error

    async def _begin(self, name: str, begin: Callable[[], Begun]) -> Begun:
        """Find or begin a version. If who asked goes meanwhile, what was begun is failed, not left in flight."""
        self._beginning[name] += 1
        work = self.components.pools.screening.start(begin)  # an artefact may have to be read whole
        work.add_done_callback(lambda _: self._no_longer_beginning(name))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._abandoned)
            raise

    def _no_longer_beginning(self, name: str) -> None:
        self._beginning[name] -= 1
        if not self._beginning[name]:
            del self._beginning[name]

    def _abandoned(self, work: asyncio.Future[Begun]) -> None:
        if work.cancelled() or work.exception() is not None:
            return
        begun = work.result()
        if (
            not isinstance(begun, Same) and begun.row.state is State.RECEIVED
        ):  # a stored one is followed by the next pass
            why = Unavailable(SCREENING_FAILED, "the upload was broken off")
            self._at_work(begun.row, self.components.pools.store.start(self._failed, begun.row, why))

    async def _work(self, begun: New | Retry, upload: PendingUpload, after: int | None, by: Uploader) -> Begun:
        """Sanitise in a thread, to its end even when who asked has gone, and let others wait for it.

        Same when another gateway made the version in the end, see `_to_the_end`.
        """
        row = self.components.progress.report(begun.row)
        work = asyncio.ensure_future(self._to_the_end(replace(begun, row=row), upload.take(), after, by))
        self._at_work(row, work)
        return await asyncio.shield(work)

    def _at_work(self, row: VersionRow, work: asyncio.Future[Any]) -> None:
        at = row.key
        self._working[at] = work
        work.add_done_callback(lambda _: self._working.pop(at, None))

    def _worker(self, at: tuple[str, int]) -> asyncio.Future[Any] | None:
        """Task of this gateway that works on this version, unless it is the one that asks."""
        work = self._working.get(at)
        return None if work is asyncio.current_task() else work

    async def _to_the_end(self, begun: Begun, upload: SealedUpload, after: int | None, by: Uploader) -> Begun:
        """One upload's way to the store. If another gateway, which took this one for dead, gave the version up, it is
        begun again here; if that one or a third has begun it again, what becomes of it there is this upload's answer.
        """
        pools = self.components.pools
        try:
            for left in reversed(range(TAKEOVERS)):
                row = begun.row
                try:
                    return replace(begun, row=await pools.screening(self._sanitise, row, upload))
                except TakenOver as error:
                    event("taken_over", logging.WARNING, adapter=row.name, version=row.number, why=error.message)
                    if not left:
                        raise
                begun = await self._came_before(row, after, by)
                if isinstance(begun, Same) or begun.row.state is not State.RECEIVED:
                    break
                self._at_work(self.components.progress.report(begun.row), _current_task())
            return Same(begun.row)
        finally:
            await pools.receiving.free(upload.close)  # before it is loaded: a slow load must hold no slot

    async def _when_done(self, row: VersionRow) -> VersionRow:
        """The version of these bytes once nobody works on it any more; what nobody works on is failed, not waited for."""
        at, catalogue = row.key, self.components.catalogue
        looks, peers, store = 0, self.components.peers, self.components.pools.store
        while looks < ORPHAN_LOOKS:
            if row.state not in IN_FLIGHT:
                return row
            mine = self._worker(at)
            await (asyncio.wait({mine}) if mine else asyncio.sleep(ORPHAN_LOOK_S))
            if not self._beginning[at[0]]:  # else its upload may not have got round to it yet
                looks += peers is None or not await store(peers.at_work_elsewhere, *at)
            row = await store(catalogue.version, row.name, row.number)
        left = Unavailable(SCREENING_FAILED, f"{row.name} version {row.number} was left half done")
        return self.components.progress.report(await store(catalogue.record_try_failed, row, left))

    @property
    def working(self) -> int:
        """Versions on their way from validate to store now."""
        return len(self._working)

    def measure(self, upload: SealedUpload) -> Verdict:
        """Validate and screen, and keep nothing. Blocking. Raises Refused."""
        steps = UploadSteps(self.components, None)
        try:
            self.components.sanitise(upload.config, upload.weights.file, upload.received, steps)
        except Refused as error:
            if error.code is not RESCREEN_FAILED:  # measured it was, and nothing was to be kept
                raise
        return steps.verdict

    def _sanitise(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        """validate, screen, prune, store: blocking, in a thread. Whatever goes wrong is recorded on the version."""
        try:
            return self._measure_and_store(row, upload)
        except TakenOver:  # not ours to record
            raise
        except Refused as error:
            self.components.metrics.upload_refused(error)
            raise VersionRefused(error, self._rejected(row, error)) from error
        except GatewayError as error:
            self._failed(row, error)
            raise
        except Exception as error:  # fail closed: an upload that breaks us is not served
            logging.getLogger("gateway").exception("screening broke")
            failure = Unavailable(SCREENING_FAILED, f"{type(error).__name__} while screening {row.name}")
            self._failed(row, failure)
            raise failure from error

    def _measure_and_store(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        r, at, steps = self.components, (row.name, row.number), UploadSteps(self.components, row)
        artefact = r.sanitise(upload.config, upload.weights.file, row.received, steps)
        if steps.verdict.outcome is Outcome.REJECTED:
            error = Refused(REJECTED, steps.verdict.reason)
            r.progress.report(r.catalogue.record_rejected(*at, error, steps.verdict, steps.report))
            raise error
        with self._kept(row, upload):
            if artefact is None:
                return r.progress.report(r.catalogue.record_stored(*at, None))
            digest = artefact.digest.hex
            with r.metrics.stage(Stage.STORE, **whose(row), digest=digest), r.blobs.claimed(artefact.digest):
                r.blobs.put(artefact)
                return r.progress.report(r.catalogue.record_stored(*at, artefact.digest))

    @contextmanager
    def _kept(self, row: VersionRow, upload: SealedUpload) -> Iterator[None]:
        """Keep what arrived, where that is wanted, and have it forgotten when what is done inside fails. Blocking."""
        try:
            self.components.kept_uploads.keep(row.received, upload.config, upload.weights.file)
            yield
        except BaseException:
            self._garbage.suspect()
            raise

    def _restored(self, row: VersionRow, upload: SealedUpload) -> bool:
        """These bytes came before. Where their artefact was damaged since, make it anew; blocking. Raises GatewayError."""
        r = self.components
        with upload:
            if row.state in (State.STORED, *SERVABLE):  # kept or not when it first came: now it may be
                with self._kept(row, upload):
                    pass
            if row.artefact is None or r.blobs.is_intact(row.artefact):
                return False
            artefact = r.sanitise(upload.config, upload.weights.file, row.received, UploadSteps(self.components, None))
            if artefact is not None:
                r.blobs.put(artefact)
            return r.blobs.is_intact(row.artefact)

    def _rejected(self, row: VersionRow, error: Refused) -> VersionRow:
        """The version as refused; recorded already where a verdict refused it. Raises Refused when it was deleted."""
        current = self.components.catalogue.version(row.name, row.number)
        if current.state is State.REJECTED:
            return current
        return self.components.progress.report(self.components.catalogue.record_rejected(row.name, row.number, error))

    def _failed(self, row: VersionRow, error: GatewayError) -> None:
        self.components.metrics.upload_refused(error)
        try:
            self.components.progress.report(
                self.components.catalogue.record_failed(row.name, row.number, error, at_work=True)
            )
        except GatewayError as second:  # the first error is the one to tell; at the next start this version is failed
            event("not_recorded", logging.ERROR, adapter=row.name, version=row.number, why=second.message)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


_NOT_OF_BYTES: Final = frozenset({SCREENING_KILLED, SCREENING_TIMEOUT, NAME_TAKEN})
"""Refusals that the same bytes may escape another time."""


def _known_refusal(row: VersionRow) -> VersionRefused | None:
    """What refused a version for its bytes, by the parameters in force; None where another try may end otherwise."""
    code = CODES.get(row.error_code or "")  # None: of another release of this program
    if row.state is not State.REJECTED or code is None or code in _NOT_OF_BYTES:
        return None
    return _refusal(row)


def _refusal(row: VersionRow) -> VersionRefused:
    """What is said of a version that was rejected or failed."""
    code = CODES.get(row.error_code or "", SCREENING_FAILED)
    kind = Refused if code.status < 500 else Unavailable
    return VersionRefused(kind(code, row.error_message or "it failed before"), row)
