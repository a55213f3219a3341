"""Rescreening: runs kept uploads through every stage again, for a new version by today's policy and reference.

The served version changes only when the new one is loaded and probed, as after any upload. The same bytes under the same
policy and reference have the same verdict (I8), so no version is made then.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.domain.adapter_source import Provenance
from app.domain.api_keys import Uploader
from app.domain.errors import (
    ADAPTER_NOT_FOUND,
    CODES,
    ORIGINAL_NOT_KEPT,
    REJECTED,
    RESCREENING,
    VERSION_NOT_READY,
    GatewayError,
    Refused,
    recall,
)
from app.domain.printable import printable
from app.domain.version_state import IN_FLIGHT, State
from app.gateway.uploads import Uploads
from app.gateway.version_refused import VersionRefused
from app.observe.log import event
from app.store.catalogue.beginning import Same
from app.store.catalogue.tables import VersionRow
from app.upload.quarantine import SealedFile
from app.upload.receive import PendingUpload, SealedUpload

KEEP_ALIVE_S: Final = 15.0
"""Seconds without a result after which a run reports that it continues: screening one large adapter may take minutes."""


NAME_SHOWN: Final = 80
"""Most characters of a requested name in a log line."""


class Result(StrEnum):
    """Kind of result of one adapter's rescreening."""

    NEW = "new"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    NOT_KEPT = "not_kept"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Rescreened:
    """Result of one adapter's rescreening.

    row: the current version, or the one that was refused; None if there is none. error: reason of a failure.
    """

    name: str
    result: Result
    row: VersionRow | None = None
    error: GatewayError | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """Version whose upload is to be screened again. newest: the newest version's number then. by: the adapter's owner."""

    row: VersionRow
    newest: int
    by: Uploader


class Rescreening:
    """Use case of rescreening, one adapter at a time however many are requested."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._turn = asyncio.Lock()
        self._all_under_way = False

    async def one(self, name: str) -> Rescreened:
        """Rescreen the version that `name` points to, or will once the engine has it. Returns NEW or UNCHANGED.

        Raises Refused ADAPTER_NOT_FOUND, ORIGINAL_NOT_KEPT, VERSION_NOT_READY (no version was accepted yet, or an upload
        is in progress); VersionRefused with the version that did not pass; Unavailable. The served version then stays
        active.
        """
        try:
            async with self._turn:
                done = await self._one(name)
        except GatewayError as error:
            self._report(Rescreened(name, result_of(error), error.row if isinstance(error, VersionRefused) else None))
            raise
        self._report(done)
        return done

    def all(self) -> "Run":
        """Begin to rescreen every adapter. The caller must close the run. Raises Refused RESCREENING during another run."""
        if self._all_under_way:
            raise Refused(RESCREENING, "all adapters are being screened again now")
        self._all_under_way = True
        return Run(self, self._uploads)

    def ended(self) -> None:
        """Record the end of a run of all adapters."""
        self._all_under_way = False

    async def _one(self, name: str) -> Rescreened:
        pools = self._uploads.components.pools
        source = await pools.store(self._source, name)
        opening = pools.screening.start(self._upload, source)
        try:
            upload = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_abandoned)
            raise
        async with PendingUpload(upload, pools.receiving) as pending:
            begun = await self._uploads.register(pending, wait=True, after=source.newest, by=source.by)
        return Rescreened(name, Result.UNCHANGED if isinstance(begun, Same) else Result.NEW, begun.row)

    def _source(self, name: str) -> _Source:
        components = self._uploads.components
        adapter, rows = components.catalogue.adapter(name), components.catalogue.versions(name)
        if in_flight := [row for row in rows if row.state in IN_FLIGHT]:
            raise Refused(VERSION_NOT_READY, f"{name} version {in_flight[-1].number} is being screened now")
        chosen = next(
            (row for row in reversed(rows) if row.state is State.STORED or row.number == adapter.active), None
        )
        if chosen is None:
            raise Refused(VERSION_NOT_READY, f"no version of {name} was ever accepted")
        if not components.kept_uploads.has(chosen.received):
            raise Refused(ORIGINAL_NOT_KEPT, f"the upload of {name} version {chosen.number} was not kept")
        same = components.catalogue.find_same(name, chosen.received, components.rules_of(chosen).parameters)
        if same is not None and same.state is State.REJECTED:  # it would be rejected again
            code = CODES.get(same.error_code or "", REJECTED)
            raise VersionRefused(recall(code, same.error_message or "it was refused before"), same)
        return _Source(
            chosen, rows[-1].number, Uploader(adapter.key_owner, admin=True, tenant=adapter.name.tenant, exempt=True)
        )

    def _upload(self, source: _Source) -> SealedUpload:
        """Return the kept upload as if it had just arrived, its digests checked. Blocking."""
        received, provenance = source.row.received, self._provenance(source.row)
        original = self._uploads.components.kept_uploads.open(received)
        weights = SealedFile(original.weights, received.weights_bytes, received.weights_digest, lambda *_: None)
        held = ExitStack()
        held.callback(weights.close)
        return SealedUpload(source.row.name.plain, original.config, weights, held, provenance=provenance)

    def _provenance(self, row: VersionRow) -> Provenance | None:
        """Return the origin of the upload that a version was made of, if it was imported. Blocking."""
        report = json.loads(self._uploads.components.catalogue.report(*row.key) or "{}")
        return Provenance.read(report["source"]) if "source" in report else None

    def _close_abandoned(self, opening: "asyncio.Future[SealedUpload]") -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._uploads.components.pools.receiving.start(opening.result().close)

    def _report(self, done: Rescreened) -> None:
        self._uploads.components.metrics.rescreened(done.result.value)
        number = done.row.number if done.row else None
        event("rescreened", adapter=printable(done.name, NAME_SHOWN), version=number, result=done.result.value)


class Run:
    """Rescreening of every adapter, in the order of their names; iterate over `results` once, then close it."""

    def __init__(self, rescreening: Rescreening, uploads: Uploads) -> None:
        self._rescreening = rescreening
        self._uploads = uploads
        self._open = True

    def close(self) -> None:
        """End the run, complete or not, so that the next may begin."""
        if self._open:
            self._open = False
            self._rescreening.ended()

    async def results(self) -> AsyncIterator[Rescreened | None]:
        """Yield each adapter's result as soon as it exists, and None every KEEP_ALIVE_S while one takes long."""
        rows = await self._uploads.components.pools.store(self._uploads.components.catalogue.adapters)
        for row in rows:
            work = asyncio.ensure_future(self._one(str(row.name)))
            try:
                while not (await asyncio.wait({work}, timeout=KEEP_ALIVE_S))[0]:
                    yield None
            finally:
                work.cancel()
            if (done := work.result()) is not None:
                yield done

    async def _one(self, name: str) -> Rescreened | None:
        try:
            return await self._rescreening.one(name)
        except GatewayError as error:
            if error.code is ADAPTER_NOT_FOUND:  # deleted meanwhile
                return None
            row = error.row if isinstance(error, VersionRefused) else None
            return Rescreened(name, result_of(error), row, error)


def result_of(error: GatewayError) -> Result:
    """Return the kind of result for an adapter whose rescreening raised this error."""
    if error.code is ORIGINAL_NOT_KEPT:
        return Result.NOT_KEPT
    return Result.REFUSED if isinstance(error, Refused) else Result.FAILED
