"""The only module that knows the order: upload → validate → screen → prune → store → load → serve."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, Artefact
from app.domain.digest import digest_of
from app.domain.lora import Adapter, Received, ServingDtype, TargetModel
from app.domain.manifest import received_json, verdict_json
from app.domain.names import AdapterName
from app.domain.policy import Policy
from app.domain.verdict import Outcome, Verdict
from app.errors import (
    MISSING_PART,
    REJECTED,
    RESCREEN_FAILED,
    SCREENING_FAILED,
    GatewayError,
    Refused,
    Stage,
    Unavailable,
)
from app.lifecycle import IN_FLIGHT, State
from app.observe.log import event
from app.prune.canonical import canonicalise
from app.prune.cut import cut
from app.prune.noop import noop_adapter
from app.publishing import Publishing, VersionRefused
from app.rooms import Rooms
from app.screen.reference import Reference, check_policy, open_reference
from app.screen.screen import screen
from app.store.blobs import BlobStore
from app.store.schema import VersionRow
from app.upload.receive import SealedUpload
from app.validate.adapter import ValidateLimits, validate

if TYPE_CHECKING:
    from torch import Tensor

MAX_RANK: Final = 512
"""vLLM's largest rank: what a screening outside any engine accepts."""


ORPHAN_LOOKS: Final = 10
ORPHAN_LOOK_S: Final = 0.1
"""Looks, and seconds between them, before a version in flight that nobody works on is given up."""


class Pipeline:
    """Uploads in, served versions out. Everything that blocks runs in threads; chat never waits for it."""

    def __init__(self, rooms: Rooms, publishing: Publishing) -> None:
        self.rooms = rooms
        self.publishing = publishing
        self._working: dict[tuple[str, int], asyncio.Future[VersionRow]] = {}

    async def register(self, upload: SealedUpload, *, wait: bool) -> tuple[VersionRow, bool]:
        """Take one sealed upload through every stage: (the version, whether it is new).

        The version is `ready`, or `stored` when the engine is away or `wait` is False: then it is published as soon as
        the engine holds it. Raises Refused or Unavailable; what was refused stays in the catalogue with its report.
        """
        r = self.rooms
        name = AdapterName.parse(upload.name, frozenset({r.target.name}))
        row, created = await asyncio.to_thread(r.catalogue.find_or_begin, name, upload.received, r.parameters)
        if not created:
            row = await self._when_done(row)
        if row.state in (State.REJECTED, State.FAILED):  # a refusal is no version to give back: measure again
            row = await asyncio.to_thread(r.catalogue.begin_version, name, upload.received, r.parameters)
            created = True
        if created:
            row = await self._work(r.progress.tell(row), upload)
            r.metrics.uploads.labels(str(row.outcome)).inc()
            await self.publishing.refresh()
        else:
            await asyncio.to_thread(upload.close)
            r.metrics.uploads.labels("known").inc()
        at_once = wait or row.emptied  # an emptied version waits for no engine
        return (await self.publishing.load(row) if at_once else row), created

    async def _work(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        """Sanitise in a thread, to its end even when who asked has gone, and let others wait for it."""
        at = (str(row.name), row.number)
        work = asyncio.ensure_future(asyncio.to_thread(self._sanitise, row, upload))
        self._working[at] = work
        work.add_done_callback(lambda _: self._working.pop(at, None))
        return await asyncio.shield(work)

    async def _when_done(self, row: VersionRow) -> VersionRow:
        """The version of these bytes once nobody works on it any more; what nobody works on is failed, not waited for."""
        at, catalogue = (str(row.name), row.number), self.rooms.catalogue
        for _ in range(ORPHAN_LOOKS):
            if row.state not in IN_FLIGHT:
                return row
            if at in self._working:
                await asyncio.wait({self._working[at]})
            else:
                await asyncio.sleep(ORPHAN_LOOK_S)  # its upload may not have got round to it yet
            row = await asyncio.to_thread(catalogue.version, row.name, row.number)
        left = Unavailable(SCREENING_FAILED, f"{row.name} version {row.number} was left half done")
        return self.rooms.progress.tell(await asyncio.to_thread(catalogue.record_failed, row.name, row.number, left))

    def measure(self, upload: SealedUpload) -> Verdict:
        """Validate and screen, and keep nothing. Blocking. Raises Refused."""
        r = self.rooms
        return self._screen(validate(upload.config, upload.weights.file, r.target, r.limits), r.policy)

    def _screen(self, adapter: Adapter, policy: Policy) -> Verdict:
        return screen(adapter, self.rooms.reference, policy, deadline_s=self.rooms.screen_seconds)

    def _sanitise(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        """validate, screen, prune, store: blocking, in a thread. Whatever goes wrong is recorded on the version."""
        try:
            return self._measure_and_store(row, upload)
        except Refused as error:
            self.rooms.metrics.uploads.labels("rejected").inc()
            raise VersionRefused(error, self._rejected(row, error)) from error
        except GatewayError as error:
            self._failed(row, error)
            raise
        except Exception as error:  # fail closed: an upload that breaks us is not served
            logging.getLogger("gateway").exception("screening broke")
            failure = Unavailable(SCREENING_FAILED, f"{type(error).__name__} while screening {row.name}")
            self._failed(row, failure)
            raise failure from error
        finally:
            upload.close()  # here, off the event loop: freeing gigabytes takes time, and a slow load must hold no slot

    def _measure_and_store(self, row: VersionRow, upload: SealedUpload) -> VersionRow:
        r, at = self.rooms, (row.name, row.number)
        with r.metrics.stage(Stage.VALIDATE):
            adapter = validate(upload.config, upload.weights.file, r.target, r.limits)
        r.progress.tell(r.catalogue.record_validated(*at))
        with r.metrics.stage(Stage.SCREEN):
            verdict = self._screen(adapter, r.policy)
        self._tell(row, verdict)
        report = json.dumps(
            {"received": received_json(row.received), "verdict": verdict_json(verdict)}, allow_nan=False
        )
        if verdict.outcome is Outcome.REJECTED:
            error = Refused(REJECTED, verdict.reason)
            r.progress.tell(r.catalogue.record_rejected(*at, error, verdict, report))
            raise error
        r.progress.tell(r.catalogue.record_screened(*at, verdict, report))
        with r.metrics.stage(Stage.PRUNE):
            left = self._prune(adapter, verdict)
        if not left.modules:
            return r.progress.tell(r.catalogue.record_stored(*at, None))
        with r.metrics.stage(Stage.STORE):
            artefact = canonicalise(left, verdict, row.received, r.target)
            r.blobs.put(artefact)
            return r.progress.tell(r.catalogue.record_stored(*at, artefact.digest))

    def _prune(self, adapter: Adapter, verdict: Verdict) -> Adapter:
        """Cut, and measure what is left once more: it must pass. Raises Refused RESCREEN_FAILED."""
        left, policy = cut(adapter, verdict, self._directions), self.rooms.policy
        if left.modules and (verdict.pruned or verdict.projected):
            again = self._screen(left, _accepting(policy))
            if again.outcome is not Outcome.CLEAN:
                raise Refused(RESCREEN_FAILED, f"screened again after pruning: {again.reason}")
        return left

    def _directions(self, module: str) -> "Tensor":
        """R_k (d_in, k) of a module that was scored by it."""
        return self.rooms.reference.directions(module, self.rooms.policy.top_k)

    def _tell(self, row: VersionRow, verdict: Verdict) -> None:
        for module in verdict.modules:
            self.rooms.metrics.modules.labels(module.decision.value).inc()
        counts = {
            "modules": len(verdict.modules),
            "pruned": len(verdict.pruned),
            "projected": len(verdict.projected),
        }
        event("screened", adapter=row.name, version=row.number, outcome=verdict.outcome.value, **counts)

    def _rejected(self, row: VersionRow, error: Refused) -> VersionRow:
        """The version as refused; recorded already where a verdict refused it. Raises Refused when it was deleted."""
        current = self.rooms.catalogue.version(row.name, row.number)
        if current.state is State.REJECTED:
            return current
        return self.rooms.progress.tell(self.rooms.catalogue.record_rejected(row.name, row.number, error))

    def _failed(self, row: VersionRow, error: GatewayError) -> None:
        self.rooms.metrics.uploads.labels("failed").inc()
        try:
            self.rooms.progress.tell(self.rooms.catalogue.record_failed(row.name, row.number, error))
        except GatewayError as second:  # the first error is the one to tell; at the next start this version is failed
            event("not_recorded", logging.ERROR, adapter=row.name, version=row.number, why=second.message)


def _accepting(policy: Policy) -> Policy:
    """For what pruning left: what the operator's cap spared stays above tau and was accepted as such."""
    return replace(policy, max_pruned=0) if policy.cap_keeps and policy.max_pruned is not None else policy


def publish_noop(target: TargetModel, reference: Reference, policy: Policy, blobs: BlobStore) -> Artefact:
    """Store the zero adapter. It goes the way of every other: screened, stamped, canonical, stored."""
    nothing = digest_of(b"")
    adapter = noop_adapter(target)
    verdict = screen(adapter, reference, policy)
    artefact = canonicalise(adapter, verdict, Received(nothing, nothing, 0, 0), target)
    blobs.put(artefact)
    return artefact


def policy_objection(rooms: Rooms, row: VersionRow) -> str | None:
    """Measure a stored artefact by the policy in force: what is wrong with it, None when it passes whole. Blocking."""
    if row.artefact is None:
        return None
    folder = rooms.blobs.path(row.artefact)
    try:
        rooms.blobs.verify(row.artefact)
        with (folder / WEIGHTS_FILE).open("rb") as weights:  # canonical: names our own model, scaling 1
            adapter = validate((folder / CONFIG_FILE).read_bytes(), weights, rooms.target, ValidateLimits())
        verdict = screen(adapter, rooms.reference, _accepting(rooms.policy), deadline_s=rooms.screen_seconds)
    except (GatewayError, OSError) as error:
        return str(error)
    return None if verdict.outcome is Outcome.CLEAN else f"by the policy in force it would be {verdict.outcome}"


def screen_directory(
    directory: Path, reference_dir: Path, policy: Policy, dtype: ServingDtype, max_rank: int = MAX_RANK
) -> Verdict:
    """Validate and screen one adapter on disk, as an upload of its two files would be. Raises GatewayError."""
    reference = open_reference(reference_dir, None)
    check_policy(reference, policy)
    target = TargetModel("any", reference.modules, dtype, max_rank)
    try:
        config = (directory / CONFIG_FILE).read_bytes()
        with (directory / WEIGHTS_FILE).open("rb") as weights:
            return screen(validate(config, weights, target, ValidateLimits()), reference, policy)
    except OSError as error:
        raise Refused(MISSING_PART, f"{error.filename}: {error.strerror}") from error
