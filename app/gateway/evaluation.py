"""Evaluation of versions on canaries: before they get their name, and again when the battery changed or time has passed.

Nothing is recorded before the end: a version whose evaluation was interrupted is `stored`, and is evaluated again from the
beginning.
"""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from app.concurrency.turns import Turns
from app.domain.artefact import Artefact
from app.domain.digest import Digest
from app.domain.errors import CANARIES_FAILED, ENGINE_UNAVAILABLE, LOAD_FAILED, Refused, Stage, Unavailable
from app.domain.manifest import verdict_json
from app.domain.tenants import DEFAULT
from app.domain.verdict import Verdict
from app.evaluate.plan import Plan
from app.evaluate.report import asked_again_json
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.desired_state import Key
from app.gateway.ladder_search import Found, LadderSearch, Subject, load_candidate
from app.gateway.rules_in_force import Rules
from app.gateway.upload_steps import UploadSteps
from app.gateway.version_refused import VersionRefused
from app.serve.relay import Choose
from app.store.catalogue.tables import AdapterRow, VersionRow
from app.upload.receive import PendingUpload, SealedUpload

BREAKS: Final = 3
"""Times that the engine may fail while a version is asked; then the version fails, since it may be what breaks the
engine."""


RETRY_S: Final = 2.0
"""Seconds after such a failure before the version is evaluated again, doubled each time: one crash must not be counted
three times, before the reconciler has noticed it."""

DRY_RUN: Final = "dry-run"
"""First part of the engine name of an artefact that is only tried, in the place of an adapter's name."""


RECHECK: Final = "recheck"
"""Holder of turns for versions that are asked again; the others are owners of adapters, and callers of dry runs."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """Result of measuring and asking an upload that is not stored.

    found: None if there is nothing to ask, because the upload is rejected or nothing of it is left.
    """

    verdict: Verdict
    found: Found | None


class Evaluation:
    """Use case of evaluating artefacts, one at a time: serving must not suffer from it. Owners take turns.

    choose: returns the engines that answer to an engine name.
    """

    def __init__(self, components: Components, follower: CatalogueFollower, choose: Choose) -> None:
        self._components = components
        self._follower = follower
        self._search = LadderSearch(components, follower, choose)
        self._turns = Turns()
        self._running: dict[tuple[Key, int], asyncio.Task[VersionRow]] = {}
        self._breaks: Counter[tuple[Key, int]] = Counter()
        self._retry_at: dict[tuple[Key, int], float] = {}

    def is_due(self, row: VersionRow) -> bool:
        """Return whether a version must be evaluated before it gets its name; an emptied one is the served model."""
        key = self._components.rules_of(row).evaluation
        return key is not None and row.engine_name is not None and row.evaluated != key

    def may_start(self, row: VersionRow) -> bool:
        """Return whether a version may be evaluated now: its last evaluation did not fail a moment ago."""
        return time.monotonic() >= self._retry_at.get((row.key, row.revision), 0.0)

    async def run(self, row: VersionRow) -> VersionRow:
        """Evaluate a stored and loaded version; callers with the same row share one evaluation, and may be cancelled.

        Returns the row with the artefact to serve. Raises VersionRefused CANARIES_FAILED if no rung passes, and
        Unavailable: ENGINE_UNAVAILABLE if the engine is down; CANARIES_TIMEOUT; CANARIES_UNUSABLE; LOAD_FAILED if the
        engine fails again and again.
        """
        at = (row.key, row.revision)
        task = self._running.get(at)
        if task is None:
            task = self._running[at] = asyncio.create_task(self._run(row), name="evaluation")
            task.add_done_callback(lambda done: self._end(at, done))
        return await asyncio.shield(task)

    async def served_model_passes(self, plan: Plan) -> bool:
        """Return whether the served model, asked now, does no worse than when it was asked first. Raises Unavailable."""
        async with self._turns.turn(RECHECK):
            return await self._search.served_model_passes(plan)

    async def run_again(self, plan: Plan, row: VersionRow) -> VersionRow:
        """Ask a published version the battery again, as it is served, and record whether it passes.

        A version that fails is asked once more: it is withheld, and one bit of the engine's rounding may decide one
        answer. Returns the current row. Raises Unavailable.
        """
        assert row.engine_name is not None
        c = self._components
        async with self._turns.turn(RECHECK), AsyncExitStack() as held:
            if row.artefact is not None and row.engine_name not in c.desired.state.adapters:
                await held.enter_async_context(self._follower.candidate(row.engine_name, c.blobs.path(row.artefact)))
                await c.reconciler.ensure(row.engine_name)
            for _ in range(2):
                tallies, passed = await self._search.ask_battery(plan, row.engine_name)
                if passed:
                    break
            behaviour = asked_again_json(plan, tallies, passed)
            # While the engine holds it: a version that passes stays there.
            return await c.pools.store(self._record_again, row, plan.key, behaviour, passed)

    async def dry_run(self, rules: Rules, upload: PendingUpload, holder: str) -> DryRun:
        """Measure and correct an upload as if it were to be stored, and search the ladder for it. rules: with a plan.

        holder: the caller; the upload holds its place among the uploads until its turn comes. Raises Refused as
        Uploads.measure, and Unavailable.
        """
        assert rules.plan is not None
        async with self._turns.turn(("caller", holder)), AsyncExitStack() as held:
            steps, sealed = UploadSteps(self._components, None), upload.take()
            artefact = await asyncio.shield(
                self._components.pools.screening.start(self._sanitised, rules, sealed, steps)
            )
            if artefact is None:
                return DryRun(steps.verdict, None)
            name_of = partial(_dry_run_name, token=secrets.token_hex(6))
            c = self._components
            own = c.routing_table.resolve(c.target.name).engine_name
            name = await load_candidate(c, self._follower, artefact, name_of, held, own)
            subject = Subject(DRY_RUN, None, sealed.received, artefact.digest, name, name_of, rules.override)
            return DryRun(steps.verdict, await self._search.run(rules.plan, subject, held))

    def _sanitised(self, rules: Rules, upload: SealedUpload, steps: UploadSteps) -> Artefact | None:
        """Screen an upload, and correct it as the floor does. Blocking; closes the upload."""
        with upload:
            given = (upload.config, upload.weights.file, upload.received, steps)
            return self._components.sanitise(*given, complete=True, override=rules.override)

    async def stop(self) -> None:
        """Cancel the evaluations; their versions stay `stored`."""
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, at: tuple[Key, int], done: asyncio.Task[VersionRow]) -> None:
        del self._running[at]
        if done.cancelled():
            return
        if done.exception() is None:  # retrieved, also if every caller was cancelled
            self._forget(at)

    def _forget(self, at: tuple[Key, int]) -> None:
        self._breaks.pop(at, None)
        self._retry_at.pop(at, None)

    async def _run(self, row: VersionRow) -> VersionRow:
        adapter = await self._components.pools.store(self._components.catalogue.adapter, row.name)
        async with self._turns.turn(_owner(adapter)):
            fields = {"adapter": str(row.name), "version": row.number, "digest": str(row.artefact)}
            try:
                with self._components.metrics.stage(Stage.EVALUATE, **fields):
                    return await self._evaluate(row)
            except Unavailable as error:
                raise self._counted(row, error) from error

    def _counted(self, row: VersionRow, error: Unavailable) -> Unavailable:
        """Return the error; LOAD_FAILED if the engine was up and has failed BREAKS times in this version's evaluations."""
        if error.code is not ENGINE_UNAVAILABLE or not self._components.reconciler.engine_up:
            return error
        at = (row.key, row.revision)
        self._breaks[at] += 1
        self._retry_at[at] = time.monotonic() + RETRY_S * 2 ** (self._breaks[at] - 1)
        if self._breaks[at] < BREAKS:
            return error
        self._forget(at)
        why = f"the engine failed {BREAKS} times while it was asked canaries; last: {error.message}"
        return Unavailable(LOAD_FAILED, why)

    async def _evaluate(self, row: VersionRow) -> VersionRow:
        """Search the ladder and record the result. The plan may be replaced meanwhile: the version is then due again."""
        c, rules = self._components, self._components.rules_of(row)
        plan = rules.plan
        assert plan is not None
        assert row.artefact is not None
        assert row.engine_name is not None
        name_of = partial(c.catalogue.free_engine_name, row)
        known = (str(row.name), row.number, row.received, row.artefact, row.engine_name)
        subject = Subject(*known, name_of, rules.override)
        async with AsyncExitStack() as held:
            found = await self._search.run(plan, subject, held)
            if found.rung is None:
                raise await self._record_not_passed(row, found)
            return await self._record_passed(row, plan, found.rung, found)

    async def _record_passed(self, row: VersionRow, plan: Plan, rung: int, found: Found) -> VersionRow:
        """Record the rung to serve and return the version."""
        c, corrected = self._components, found.corrected
        report = await c.pools.store(self._report_of, row, corrected.verdict if corrected else None, found.behaviour)
        record = partial(c.catalogue.record_passed, row, plan.key, report, rung, corrected)
        now = c.progress.report(await c.pools.store(record))
        c.metrics.evaluated("corrected" if corrected else "floor")
        return now

    async def _record_not_passed(self, row: VersionRow, found: Found) -> VersionRefused:
        """Record the rejection and return it, code CANARIES_FAILED."""
        c, error = self._components, Refused(CANARIES_FAILED, found.why)
        report = await c.pools.store(self._report_of, row, None, found.behaviour)
        now = c.progress.report(await c.pools.store(c.catalogue.record_not_passed, row, error, report))
        c.metrics.evaluated("rejected")
        await self._follower.refresh()
        return VersionRefused(error, now)

    def _record_again(self, row: VersionRow, key: str, behaviour: dict[str, Any], passed: bool) -> VersionRow:
        """Record the result of asking a published version again. Blocking."""
        report = json.loads(self._components.catalogue.report(row.name, row.number) or "{}")
        text = json.dumps({**report, "asked_again": behaviour}, allow_nan=False)
        return self._components.catalogue.record_asked_again(row, key, text, passed=passed)

    def _report_of(self, row: VersionRow, verdict: Verdict | None, behaviour: Mapping[str, Any]) -> str:
        """Return the version's report with the evaluation. Blocking.

        If another artefact is served, `verdict` is that artefact's, and `floor` the one about the upload.
        """
        report = json.loads(self._components.catalogue.report(row.name, row.number) or "{}")
        if verdict is not None:
            report |= {"verdict": verdict_json(verdict), "floor": report["verdict"]}
        return json.dumps({**report, "behaviour": behaviour}, allow_nan=False)


def _owner(adapter: AdapterRow) -> tuple[str, str | None]:
    """Return the holder of an adapter's turns: its tenant, in `default` its owner."""
    return adapter.name.tenant, adapter.key_owner if adapter.name.tenant == DEFAULT else None


def _dry_run_name(digest: Digest, token: str) -> str:
    """Return an engine name for an artefact of one dry run."""
    return f"{DRY_RUN}@{digest.hex[:12]}-{token}"
