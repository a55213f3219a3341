"""Uploads: one adapter's way through upload → validate → screen → prune → store → load → serve; only this file knows it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

from app.domain.api_keys import NOBODY, Uploader
from app.domain.artefact import Artefact
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
    recall,
)
from app.domain.names import AdapterName
from app.domain.tenants import split_name
from app.domain.verdict import Outcome, Verdict
from app.domain.version_state import ENDED, IN_FLIGHT, SERVABLE, State
from app.gateway.components import Components
from app.gateway.garbage import GarbageCollector
from app.gateway.publishing import Publishing
from app.gateway.upload_steps import UploadSteps, whose
from app.gateway.version_refused import VersionRefused
from app.observe.log import event
from app.store.catalogue.beginning import Begun, Ended, New, Retry, Same
from app.store.catalogue.limits import OverQuota
from app.store.catalogue.tables import VersionRow
from app.store.cluster.peers import TakenOver
from app.upload.receive import PendingUpload, SealedUpload

ORPHAN_LOOKS: Final = 10
ORPHAN_LOOK_S: Final = 0.1
"""Checks that find no worker for a version in flight before it is failed, and seconds between them."""

TAKEOVERS: Final = 3
"""Most tries of one upload: a try is lost if another gateway takes this one for dead during it. If more than one is
lost, this gateway is too slow to be distinguished from a dead one."""


class Uploads:
    """Use case of uploading: uploads in, served versions out. Blocking work runs in threads; chat never waits for it."""

    def __init__(self, components: Components, publishing: Publishing, garbage: GarbageCollector) -> None:
        self.components = components
        self.publishing = publishing
        self._garbage = garbage
        self._working: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._beginning: Counter[str] = Counter()  # adapter name → calls that find or begin a version

    async def register(
        self, upload: PendingUpload, *, wait: bool, after: int | None = None, by: Uploader = NOBODY
    ) -> Begun:
        """Take one sealed upload through every stage. Returns New or Retry if this call made the version, otherwise Same.

        The version is `ready`, or `stored` if the engine is down or `wait` is False; it is then published as soon as the
        engine holds it. after: refuse a new version unless the newest so far has this number. by: the uploader. Raises
        Refused or Unavailable; a refused version stays in the catalogue with its report.
        """
        c = self.components
        name = AdapterName.parse(upload.name, frozenset({c.target.name}), by.tenant)
        begin = partial(
            c.catalogue.begin, name, upload.received, c.rules.of(name.tenant).parameters, after=after, by=by
        )
        begun = await self._begin(name.text, begin)
        if isinstance(begun, Same):
            begun = await self._reuse_or_retry(begun.row, after, by)
        if not isinstance(begun, Same) and begun.row.state is State.RECEIVED:
            begun = await self._work(begun, upload, after, by)
            c.metrics.uploaded("known" if isinstance(begun, Same) else str(begun.row.outcome))
            await self.publishing.stored(begun.row)
        else:
            row = begun.row
            if await asyncio.shield(c.pools.screening.start(self._restore_artefact, row, upload.take())):
                event("restored", logging.WARNING, adapter=row.name, version=row.number, artefact=row.artefact)
                await self.publishing.stored(row)
            c.metrics.uploaded("known")
        at_once = wait or begun.row.emptied or begun.row.state is not State.STORED  # these need no engine
        return replace(begun, row=await self.publishing.load(begun.row)) if at_once else begun

    async def _reuse_or_retry(self, row: VersionRow, after: int | None, by: Uploader) -> Begun:
        """Return the existing version of these bytes, once no task works on it: Same, or begun again if it had ended.

        It is begun again under its own number, because repeated uploads must not fill the catalogue and the disk. Raises
        VersionRefused if it would end as before, or if another upload retried it first and failed.
        """
        row = await self._when_done(row)
        if _is_known_refusal(row):
            raise await self._refusal(row)
        if row.state not in ENDED:
            return Same(row)
        slow = self._worker(row.key)
        if slow is not None:  # another gateway failed the version while this one still works on it: wait for that work
            await asyncio.wait({slow})
        begun = await self._begin(str(row.name), partial(self._retry, row, after, by))
        if not isinstance(begun, Same):
            if begun.row.state is State.STORED:
                await self.publishing.stored(begun.row)
            return begun
        if (row := await self._when_done(begun.row)).state in ENDED:
            raise await self._refusal(row)
        return Same(row)

    def _retry(self, row: VersionRow, after: int | None, by: Uploader) -> Begun:
        """Retry a version that had ended. Blocking."""
        c, given = self.components, (row.name, row.received, row.parameters)
        intact = row.artefact is not None and c.blobs.is_intact(row.artefact)
        begun = c.catalogue.begin(*given, after=after, by=by, ended=Ended(row.number, intact))
        return begun if isinstance(begun, Same) else replace(begun, row=c.progress.report_again(begun.row))

    async def _refusal(self, row: VersionRow) -> VersionRefused:
        """Return the error to report for a version that was rejected or failed, counted."""
        code = CODES.get(row.error_code or "", SCREENING_FAILED)
        faults = await self.components.pools.store(self.components.catalogue.faults, row)
        error = VersionRefused(recall(code, row.error_message or "it failed before", faults), row)
        self.components.metrics.upload_refused(error)
        return error

    async def _begin(self, name: str, begin: Callable[[], Begun]) -> Begun:
        """Find or begin a version. If the caller is cancelled meanwhile, a begun version is failed, not left in flight."""
        self._beginning[name] += 1
        work = self.components.pools.screening.start(begin)  # may read a whole artefact
        work.add_done_callback(lambda _: self._end_beginning(name))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._fail_abandoned)
            raise
        except OverQuota as error:
            self.components.notices.quota_reached(split_name(name)[0], error.limit)
            raise

    def _end_beginning(self, name: str) -> None:
        self._beginning[name] -= 1
        if not self._beginning[name]:
            del self._beginning[name]

    def _fail_abandoned(self, work: asyncio.Future[Begun]) -> None:
        if work.cancelled() or work.exception() is not None:
            return
        begun = work.result()
        # A version begun in state `stored` is left to the next reconcile pass.
        if not isinstance(begun, Same) and begun.row.state is State.RECEIVED:
            why = Unavailable(SCREENING_FAILED, "the upload was cancelled")
            self._register_worker(begun.row, self.components.pools.store.start(self._record_failed, begun.row, why))

    async def _work(self, begun: New | Retry, upload: PendingUpload, after: int | None, by: Uploader) -> Begun:
        """Sanitise in a thread, to completion even if the caller is cancelled; other callers may wait for the result.

        Returns Same if another gateway made the version in the end: see `_sanitise_or_follow`.
        """
        row = self.components.progress.report(begun.row)
        work = asyncio.ensure_future(self._sanitise_or_follow(replace(begun, row=row), upload.take(), after, by))
        self._register_worker(row, work)
        return await asyncio.shield(work)

    def _register_worker(self, row: VersionRow, work: asyncio.Future[Any]) -> None:
        at = row.key
        self._working[at] = work
        work.add_done_callback(lambda _: self._working.pop(at, None))

    def _worker(self, at: tuple[str, int]) -> asyncio.Future[Any] | None:
        """Return the task of this gateway that works on a version; None if there is none, or it is the current task."""
        work = self._working.get(at)
        return None if work is asyncio.current_task() else work

    async def _sanitise_or_follow(self, begun: Begun, upload: SealedUpload, after: int | None, by: Uploader) -> Begun:
        """Sanitise one upload and store its artefact.

        If another gateway took this one for dead and failed the version, it is begun again here. If another gateway has
        begun it again, the result there is this upload's result: Same.
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
                begun = await self._reuse_or_retry(row, after, by)
                if isinstance(begun, Same) or begun.row.state is not State.RECEIVED:
                    break
                self._register_worker(self.components.progress.report(begun.row), _current_task())
            return Same(begun.row)
        finally:
            await pools.receiving.free(upload.close)  # before the load: a slow one must not hold a slot

    async def _when_done(self, row: VersionRow) -> VersionRow:
        """Wait until no task works on a version and return it. A version in flight without a worker is failed."""
        at, catalogue = row.key, self.components.catalogue
        looks, peers, store = 0, self.components.peers, self.components.pools.store
        while looks < ORPHAN_LOOKS:
            if row.state not in IN_FLIGHT:
                return row
            mine = self._worker(at)
            await (asyncio.wait({mine}) if mine else asyncio.sleep(ORPHAN_LOOK_S))
            if not self._beginning[at[0]]:  # otherwise its worker may not be registered yet
                looks += peers is None or not await store(peers.at_work_elsewhere, *at)
            row = await store(catalogue.version, row.name, row.number)
        left = Unavailable(SCREENING_FAILED, f"{row.name} version {row.number} was left half done")
        return self.components.progress.report(await store(catalogue.record_try_failed, row, left))

    @property
    def working(self) -> int:
        """Number of versions between validate and store now."""
        return len(self._working)

    def measure(self, upload: SealedUpload, tenant: str) -> Verdict:
        """Validate and screen an upload of a tenant by every comparison, and store nothing. Blocking. Raises Refused."""
        steps = UploadSteps(self.components, None)
        try:
            override = self.components.rules.of(tenant).override
            given = (upload.config, upload.weights.file, upload.received, steps)
            self.components.sanitise(*given, complete=True, override=override)
        except Refused as error:
            if error.code is not RESCREEN_FAILED:  # it has a verdict, and nothing was to be stored
                raise
        return steps.verdict

    def _sanitise(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        """Validate, screen, prune and store an upload. Blocking, in a thread. Every failure is recorded on the version."""
        try:
            return self._measure_and_store(row, upload)
        except TakenOver:  # the version is another gateway's to record
            raise
        except Refused as error:
            self.components.metrics.upload_refused(error)
            raise VersionRefused(error, self._record_rejected(row, error)) from error
        except GatewayError as error:
            self._record_failed(row, error)
            raise
        except Exception as error:  # fail closed: an upload that triggers a bug is not served
            logging.getLogger("gateway").exception("screening broke")
            failure = Unavailable(SCREENING_FAILED, f"{type(error).__name__} while screening {row.name}")
            self._record_failed(row, failure)
            raise failure from error

    def _measure_and_store(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        r, at, steps = self.components, (row.name, row.number), UploadSteps(self.components, row, upload.provenance)
        artefact = self._sanitised(row, upload, steps)
        if steps.verdict.outcome is Outcome.REJECTED:
            error = Refused(REJECTED, steps.verdict.reason)
            r.progress.report(r.catalogue.record_rejected(*at, error, steps.verdict, steps.report))
            raise error
        with self._keeping(row, upload):
            if artefact is None:
                return r.progress.report(r.catalogue.record_stored(*at, None))
            digest = artefact.digest.hex
            with r.metrics.stage(Stage.STORE, **whose(row), digest=digest), r.blobs.claimed(artefact.digest):
                r.blobs.put(artefact)
                return r.progress.report(r.catalogue.record_stored(*at, artefact.digest))

    def _sanitised(self, row: VersionRow, upload: SealedUpload, steps: UploadSteps) -> Artefact | None:
        """Sanitise an upload by the rules that were in force when its version began."""
        override = self.components.rules.override_at(row.parameters)
        given = (upload.config, upload.weights.file, row.received, steps)
        return self.components.sanitise(*given, override=override)

    @contextmanager
    def _keeping(self, row: VersionRow, upload: SealedUpload) -> Iterator[None]:
        """Keep the upload if uploads are kept; if the block fails, let the garbage collector remove it. Blocking."""
        try:
            self.components.kept_uploads.keep(row.received, upload.config, upload.weights.file)
            yield
        except BaseException:
            self._garbage.suspect()
            raise

    def _restore_artefact(self, row: VersionRow, upload: SealedUpload) -> bool:
        """Make the artefact of an existing version again if it was damaged. Returns whether it was restored.

        Also keeps the upload if uploads are kept. Blocking. Raises GatewayError.
        """
        r = self.components
        with upload:
            if row.state in (State.STORED, *SERVABLE):  # it may not have been kept the first time
                with self._keeping(row, upload):
                    pass
            if row.artefact is None or r.blobs.is_intact(row.artefact):
                return False
            artefact = self._sanitised(row, upload, UploadSteps(r, None))
            if artefact is not None:
                r.blobs.put(artefact)
            return r.blobs.is_intact(row.artefact)

    def _record_rejected(self, row: VersionRow, error: Refused) -> VersionRow:
        """Record a refusal, unless a verdict's is recorded already; return the row. Raises Refused if it was deleted."""
        current = self.components.catalogue.version(row.name, row.number)
        if current.state is State.REJECTED:
            return current
        return self.components.progress.report(self.components.catalogue.record_rejected(row.name, row.number, error))

    def _record_failed(self, row: VersionRow, error: GatewayError) -> None:
        self.components.metrics.upload_refused(error)
        try:
            self.components.progress.report(
                self.components.catalogue.record_failed(row.name, row.number, error, at_work=True)
            )
        except GatewayError as second:  # the first error is raised; the next start fails this version
            event("not_recorded", logging.ERROR, adapter=row.name, version=row.number, why=second.message)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


_NOT_ABOUT_BYTES: Final = frozenset({SCREENING_KILLED, SCREENING_TIMEOUT, NAME_TAKEN})
"""Codes of refusals that the same bytes may not get on another try."""


def _is_known_refusal(row: VersionRow) -> bool:
    """Return whether a version was refused for its bytes, by the parameters in force; a retry of any other may end well."""
    code = CODES.get(row.error_code or "")  # None: a code of another release of this program
    return row.state is State.REJECTED and code is not None and code not in _NOT_ABOUT_BYTES
