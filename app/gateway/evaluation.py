"""Evaluation of a stored version before it gets its name: canaries on the floor, then on stronger corrections.

Each correction is an artefact of its own, made from the stored one, which is what the floor left. Projecting takes out
nested sets of directions, so that this equals correcting the upload itself, up to rounding. The engine loads a candidate
under an engine name, which no client can ask for, and unloads it afterwards. Nothing is recorded before the end: a version
whose evaluation was interrupted is `stored`, and is evaluated again from the beginning.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, Artefact
from app.domain.errors import (
    CANARIES_FAILED,
    ENGINE_UNAVAILABLE,
    LOAD_FAILED,
    STORE_FAILED,
    Refused,
    Stage,
    Unavailable,
)
from app.domain.manifest import verdict_json
from app.domain.verdict import Verdict
from app.evaluate.asking import ask
from app.evaluate.ladder import Ask, Half, Serve, Tally, next_step, passes, tally
from app.evaluate.plan import Plan
from app.evaluate.report import Asked, behaviour_json, failure
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.desired_state import Key
from app.gateway.version_refused import VersionRefused
from app.load.client.identity import distance, next_tokens
from app.observe.log import event
from app.serve.relay import Choose
from app.store.catalogue.evaluated import Corrected
from app.store.catalogue.tables import VersionRow

BREAKS: Final = 3
"""Times that the engine may fail while a version is asked; then the version fails, since it may be what breaks the
engine."""


RETRY_S: Final = 2.0
"""Seconds after such a failure before the version is evaluated again, doubled each time: one crash must not be counted
three times, before the reconciler has noticed it."""

NO_EFFECT: Final = 1e-6
"""Mean difference of a next token's log-probability, in nats, up to which an adapter has no effect: the engine computes
the same sums in the same order, and only a batch shared with other requests makes their last bits differ."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Artefact in the engine. corrected: None for the stored artefact itself."""

    engine_name: str
    corrected: Corrected | None = None


class Evaluation:
    """Use case of evaluating stored versions, one at a time: serving must not suffer from it.

    plan: the questions and the corrections to try. choose: returns the engines that answer to an engine name.
    """

    def __init__(self, components: Components, follower: CatalogueFollower, plan: Plan, choose: Choose) -> None:
        self._components = components
        self._follower = follower
        self._plan = plan
        self._choose = choose
        self._one_at_a_time = asyncio.Lock()
        self._running: dict[tuple[Key, int], asyncio.Task[VersionRow]] = {}
        self._breaks: Counter[tuple[Key, int]] = Counter()
        self._retry_at: dict[tuple[Key, int], float] = {}
        self._served_model: Mapping[Half, Tally] | None = None

    def is_due(self, row: VersionRow) -> bool:
        """Return whether a version must be evaluated before it gets its name; an emptied one is the served model."""
        return row.engine_name is not None and row.evaluated != self._plan.key

    def may_start(self, row: VersionRow) -> bool:
        """Return whether a version may be evaluated now: its last evaluation did not fail a moment ago."""
        return time.monotonic() >= self._retry_at.get((row.key, row.revision), 0.0)

    async def run(self, row: VersionRow) -> VersionRow:
        """Evaluate a stored and loaded version; callers with the same row share one evaluation, and may be cancelled.

        Returns the row with the artefact to serve. Raises VersionRefused CANARIES_FAILED if no rung passes, and
        Unavailable: ENGINE_UNAVAILABLE if the engine is down; CANARIES_TIMEOUT; LOAD_FAILED if the engine fails again and
        again.
        """
        at = (row.key, row.revision)
        task = self._running.get(at)
        if task is None:
            task = self._running[at] = asyncio.create_task(self._run(row), name="evaluation")
            task.add_done_callback(lambda done: self._end(at, done))
        return await asyncio.shield(task)

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
        async with self._one_at_a_time:
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
        plan, deadline = self._plan, time.monotonic() + self._plan.seconds
        candidates: dict[int, _Candidate | None] = {}
        asked: list[Asked] = []
        async with AsyncExitStack() as held:
            served_model = await self._ask_served_model(deadline)
            no_effect = await self._has_no_effect(row)
            step = next_step(1 + len(plan.policies), {})
            while isinstance(step, Ask):
                if step.rung not in candidates:
                    candidates[step.rung] = await self._candidate(row, step.rung, held)
                result = await self._ask(candidates[step.rung], step, served_model, deadline)
                asked.append(result)
                self._report(row, result)
                step = next_step(1 + len(plan.policies), {(one.rung, one.half): one.passed for one in asked})
            chosen = step.rung if isinstance(step, Serve) else None
            behaviour = behaviour_json(plan, served_model, asked, chosen, no_effect)
            if isinstance(step, Serve):
                return await self._record_passed(row, step.rung, candidates[step.rung], behaviour)
            raise await self._record_not_passed(row, behaviour, asked)

    async def _ask_served_model(self, deadline: float) -> Mapping[Half, Tally]:
        """Return the results of the served model itself, which is asked once."""
        if self._served_model is None:
            c = self._components
            name = c.routing_table.resolve(c.target.name).engine_name
            self._served_model = {half: await self._tally(name, half, deadline) for half in Half}
            failing = sum(sum(map(one.failed, one.asked)) for one in self._served_model.values())
            if failing:
                asked = sum(sum(one.asked.values()) for one in self._served_model.values())
                why = "an adapter may fail as many of each category: python -m app canaries check lists them"
                event("served_model_fails_canaries", logging.WARNING, failed=failing, asked=asked, why=why)
        return self._served_model

    async def _has_no_effect(self, row: VersionRow) -> bool | None:
        """Return whether a version answers fixed texts exactly as the served model; None if the engine does not tell."""
        assert row.engine_name is not None
        c = self._components
        own = c.routing_table.resolve(c.target.name).engine_name
        try:
            answers = [await next_tokens(self._choose(name)[0], name) for name in (own, row.engine_name)]
        except ValueError:
            return None
        if distance(*answers) > NO_EFFECT:
            return False
        c.metrics.without_effect()
        why = "the engine loaded it and answers as without it: modules it does not serve, or an update of zero"
        event("no_effect", logging.WARNING, adapter=row.name, version=row.number, why=why)
        return True

    async def _tally(self, engine_name: str, half: Half, deadline: float) -> Tally:
        engine = self._choose(engine_name)[0]
        judged = await ask(engine, engine_name, self._plan.half(half), deadline)
        return tally((one.canary, one.judgement) for one in judged)

    async def _ask(
        self, candidate: _Candidate | None, step: Ask, served_model: Mapping[Half, Tally], deadline: float
    ) -> Asked:
        if candidate is None:
            return Asked(step.rung, step.half, None, passed=False)
        counts = await self._tally(candidate.engine_name, step.half, deadline)
        good = passes(counts, served_model[step.half], self._plan.tolerance)
        return Asked(step.rung, step.half, counts, good)

    def _report(self, row: VersionRow, result: Asked) -> None:
        counts = result.tally or Tally()
        self._components.metrics.asked_canaries(counts)
        event(
            "canaries_asked",
            adapter=row.name,
            version=row.number,
            rung=result.rung,
            half=result.half.value,
            passed=result.passed,
            asked=sum(counts.asked.values()),
            complied=sum(counts.complied.values()),
            broken=sum(counts.broken.values()),
        )

    async def _candidate(self, row: VersionRow, rung: int, held: AsyncExitStack) -> _Candidate | None:
        """Make a rung's artefact and have it loaded until `held` is closed; None if the rung leaves nothing to serve."""
        assert row.engine_name is not None
        if rung == 0:
            return _Candidate(row.engine_name)
        c = self._components
        artefact, verdict = await c.pools.screening(self._make, row, rung)
        if artefact is None or verdict is None:
            return None
        if artefact.digest == row.artefact:  # this rung changes nothing
            return _Candidate(row.engine_name)
        claims = ExitStack()
        held.push_async_callback(c.pools.store, claims.close)
        await c.pools.store(self._put, artefact, claims)
        name = await c.pools.store(c.catalogue.free_engine_name, row, artefact.digest)
        await held.enter_async_context(self._follower.candidate(name, c.blobs.path(artefact.digest)))
        await c.reconciler.ensure(name)
        return _Candidate(name, Corrected(artefact.digest, verdict))

    def _make(self, row: VersionRow, rung: int) -> tuple[Artefact | None, Verdict | None]:
        """Correct the stored artefact as a rung says. Blocking. Raises Unavailable."""
        assert row.artefact is not None
        c, steps = self._components, _VerdictOf()
        c.blobs.verify(row.artefact)
        folder = c.blobs.path(row.artefact)
        try:
            with (folder / WEIGHTS_FILE).open("rb") as weights:
                config = (folder / CONFIG_FILE).read_bytes()
                return c.sanitise(config, weights, row.received, steps, rung=rung), steps.verdict
        except Refused as error:  # what is left does not pass its own measurement: nothing to serve
            event("rung_refused", logging.WARNING, adapter=row.name, version=row.number, rung=rung, why=str(error))
            return None, None
        except OSError as error:
            raise Unavailable(STORE_FAILED, f"artefact {row.artefact.short}: {error.strerror}") from error

    def _put(self, artefact: Artefact, claims: ExitStack) -> None:
        """Store an artefact that no version names yet, claimed until `claims` is closed. Blocking."""
        claims.enter_context(self._components.blobs.claimed(artefact.digest))
        self._components.blobs.put(artefact)

    async def _record_passed(
        self, row: VersionRow, rung: int, chosen: _Candidate | None, behaviour: dict[str, object]
    ) -> VersionRow:
        """Record the rung to serve and return the version."""
        c, corrected = self._components, chosen.corrected if chosen is not None else None
        report = await c.pools.store(self._report_of, row, corrected.verdict if corrected else None, behaviour)
        record = partial(c.catalogue.record_passed, row, self._plan.key, report, rung, corrected)
        now = c.progress.report(await c.pools.store(record))
        c.metrics.evaluated("corrected" if corrected else "floor")
        return now

    async def _record_not_passed(
        self, row: VersionRow, behaviour: dict[str, object], asked: list[Asked]
    ) -> VersionRefused:
        """Record the rejection and return it, code CANARIES_FAILED."""
        c, error = self._components, Refused(CANARIES_FAILED, failure(asked))
        report = await c.pools.store(self._report_of, row, None, behaviour)
        now = c.progress.report(await c.pools.store(c.catalogue.record_not_passed, row, error, report))
        c.metrics.evaluated("rejected")
        await self._follower.refresh()
        return VersionRefused(error, now)

    def _report_of(self, row: VersionRow, verdict: Verdict | None, behaviour: dict[str, object]) -> str:
        """Return the version's report with the evaluation. Blocking.

        If another artefact is served, `verdict` is that artefact's, and `floor` the one about the upload.
        """
        report = json.loads(self._components.catalogue.report(row.name, row.number) or "{}")
        if verdict is not None:
            report |= {"verdict": verdict_json(verdict), "floor": report["verdict"]}
        return json.dumps({**report, "behaviour": behaviour}, allow_nan=False)


class _VerdictOf:
    """Steps of a correction: keeps the verdict; durations belong to the stage `evaluate`."""

    verdict: Verdict | None = None

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """See Steps."""

    def validated(self) -> None:
        """See Steps."""

    def screened(self, verdict: Verdict) -> None:
        """See Steps."""
        self.verdict = verdict
