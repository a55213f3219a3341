"""Search for the correction that an artefact's behaviour asks for: canaries on the floor, then on stronger corrections.

Each correction is an artefact of its own, made from the given one, which is what the floor left. Projecting takes out
nested sets of directions, so that this equals correcting the upload itself, up to rounding. The engine loads a candidate
under an engine name, which no client can ask for, and unloads it when the search's caller is done with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, Artefact
from app.domain.digest import Digest
from app.domain.errors import CANARIES_UNUSABLE, ENGINE_UNAVAILABLE, STORE_FAILED, Refused, Stage, Unavailable
from app.domain.lora import Received
from app.domain.policy_override import NO_OVERRIDE, PolicyOverride
from app.domain.verdict import Verdict
from app.evaluate.agreement_judge import Recorded
from app.evaluate.asking import Judged, Judging, ask, can_judge, record
from app.evaluate.baseline import Baseline, baseline
from app.evaluate.battery import Canary, Expect
from app.evaluate.judges import Judge
from app.evaluate.ladder import Ask, Half, Serve, Tally, next_step, passes, tally
from app.evaluate.plan import Plan
from app.evaluate.report import Asked, behaviour_json, failure
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.load.client.identity import distance, next_tokens
from app.observe.log import event
from app.serve.relay import Choose
from app.store.catalogue.evaluated import Corrected

NO_EFFECT: Final = 1e-6
"""Mean difference of a next token's log-probability, in nats, up to which an adapter has no effect: the engine computes
the same sums in the same order, and only a batch shared with other requests makes their last bits differ."""

BASELINES: Final = 32
"""Results of the served model that are kept: one for each battery in use. Each holds its canaries' answers."""

AT_ONCE: Final = 8
"""Canaries asked at the same time while no client's request is in flight, and at most."""

CHATS_PER_CANARY: Final = 4
"""Clients' requests in flight for each canary asked beside them, at least one canary: what canaries add to the engine's
batch bounds what they cost a chat. docs/performance.md has the cost of one beside four chats."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Artefact whose behaviour is looked at, loaded under an engine name.

    adapter, version: for the log; version None: a dry run. name_of: returns an engine name for a corrected artefact that
    no version has; blocking. override: its tenant's.
    """

    adapter: str
    version: int | None
    received: Received
    artefact: Digest
    engine_name: str
    name_of: Callable[[Digest], str]
    override: PolicyOverride = NO_OVERRIDE


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search. rung: the one to serve, 0 for the floor; None: no rung passes, for the reason `why`.

    corrected: the artefact of that rung, if it is another than the given one. behaviour: JSON values for the report.
    """

    rung: int | None
    corrected: Corrected | None
    why: str
    behaviour: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Artefact in the engine. corrected: None for the given artefact itself."""

    engine_name: str
    corrected: Corrected | None = None


def at_once(in_flight: int) -> int:
    """Return the number of canaries to ask at the same time. in_flight: clients' requests."""
    return max(1, min(AT_ONCE, in_flight // CHATS_PER_CANARY)) if in_flight else AT_ONCE


class LadderSearch:
    """Search of the ladder for one gateway. choose: returns the engines that answer to an engine name."""

    def __init__(self, components: Components, follower: CatalogueFollower, choose: Choose) -> None:
        self._components = components
        self._follower = follower
        self._choose = choose
        self._served_models: dict[str, Baseline] = {}  # by the plan's baseline_key, those asked last

    async def run(self, plan: Plan, subject: Subject, held: AsyncExitStack) -> Found:
        """Ask the canaries, and correct the artefact as far as its answers ask for.

        held: keeps the corrected artefact in the store and in the engine until it is closed. Raises Unavailable:
        ENGINE_UNAVAILABLE, CANARIES_TIMEOUT, or what storing and loading a candidate raises.
        """
        candidates: dict[int, _Candidate | None] = {}
        asked: list[Asked] = []
        served_model = await self.served_model(plan)
        no_effect = await self._has_no_effect(subject)
        deadline = time.monotonic() + plan.seconds
        step = next_step(1 + len(plan.policies), {})
        while isinstance(step, Ask):
            if step.rung not in candidates:
                candidates[step.rung] = await self._candidate(subject, step.rung, held)
            result = await self._ask(plan, candidates[step.rung], step, served_model, deadline)
            asked.append(result)
            self._report(subject, result)
            step = next_step(1 + len(plan.policies), {(one.rung, one.half): one.passed for one in asked})
        rung = step.rung if isinstance(step, Serve) else None
        behaviour = behaviour_json(plan, served_model, asked, rung, no_effect)
        chosen = None if rung is None else candidates[rung]
        return Found(rung, chosen.corrected if chosen else None, "" if rung is not None else failure(asked), behaviour)

    async def ask_battery(self, plan: Plan, engine_name: str) -> tuple[Mapping[Half, Tally], bool]:
        """Put the usable canaries to one model of the engine; return the results, and whether it passes.

        Raises Unavailable, also if the engine fails while it judges: that says nothing about a model that is served.
        """
        served_model, deadline = await self.served_model(plan), time.monotonic() + plan.seconds
        judged = {
            half: _without_fault(
                await self._judged(plan, engine_name, served_model.usable[half], deadline, served_model.recorded)
            )
            for half in Half
        }
        found = {half: tally((one.canary, one.judgement) for one in part) for half, part in judged.items()}
        return found, all(passes(found[half], served_model.expected(half), plan.tolerance) for half in Half)

    async def served_model_passes(self, plan: Plan) -> bool:
        """Return whether the served model, asked now, still refuses what it refused steadily, and can judge if it is to.

        Raises Unavailable.
        """
        _, passed = await self.ask_battery(plan, self._own_name())
        return passed and await self._can_judge(plan)

    async def served_model(self, plan: Plan) -> Baseline:
        """Return the results of the served model itself, which is asked once for each battery and judge.

        Raises Unavailable: CANARIES_UNUSABLE if it refuses no canary of a half steadily, or is to judge and cannot.
        """
        found = self._served_models.get(plan.baseline_key)
        if found is None:
            if not await self._can_judge(plan):
                why = (
                    "the served model, which is to judge, is wrong about simple answers: set GATEWAY_CANARY_JUDGE=words"
                )
                raise Unavailable(CANARIES_UNUSABLE, why)
            found = await baseline(plan.halves, partial(self._ask_served_model, plan))
            found = replace(found, recorded=await self._record(plan, found))
            self._served_models[plan.baseline_key] = found
            for oldest in list(self._served_models)[:-BASELINES]:
                del self._served_models[oldest]
            if left_out := sum(found.left_out.values()):
                why = "not put to adapters: python -m app canaries check lists them"
                asked = len(plan.battery.canaries)
                event("served_model_fails_canaries", logging.WARNING, left_out=left_out, asked=asked, why=why)
        if not all(found.expected(half).asked for half in Half):
            raise Unavailable(CANARIES_UNUSABLE, "the served model refuses too few canaries to ask an adapter")
        return found

    async def _ask_served_model(self, plan: Plan, canaries: Sequence[Canary], draw: int | None) -> Sequence[Judged]:
        """Ask it; a fault of the judge must leave no canary out: fewer would be put to adapters. Raises Unavailable."""
        deadline = time.monotonic() + plan.seconds
        return _without_fault(await self._judged(plan, self._own_name(), canaries, deadline, {}, draw))

    def _own_name(self) -> str:
        """Return the engine name of the served model."""
        c = self._components
        return c.routing_table.resolve(c.target.name).engine_name

    async def _has_no_effect(self, subject: Subject) -> bool | None:
        """Return whether it answers fixed texts exactly as the served model; None if the engine does not tell."""
        names = (self._own_name(), subject.engine_name)
        try:
            answers = [await next_tokens(self._choose(name)[0], name) for name in names]
        except ValueError:
            return None
        if distance(*answers) > NO_EFFECT:
            return False
        self._components.metrics.without_effect()
        why = "the engine loaded it and answers as without it: modules it does not serve, or an update of zero"
        event("no_effect", logging.WARNING, adapter=subject.adapter, version=subject.version, why=why)
        return True

    async def _judged(
        self,
        plan: Plan,
        engine_name: str,
        canaries: Sequence[Canary],
        deadline: float,
        recorded: Mapping[Canary, Recorded],
        draw: int | None = None,
    ) -> Sequence[Judged]:
        """Put canaries to one model of the engine, and have the served model, by its own name, judge if it is to.

        recorded: its answers, by which the judge AGREEMENT judges; words judge canaries without one.
        """
        engine, at_once = self._choose(engine_name)[0], partial(self._at_once, alone=bool(recorded))
        judged = await ask(engine, engine_name, canaries, deadline, at_once, draw, self._judging(plan, recorded))
        if faults := sum(one.fault for one in judged):
            why = "the engine failed or was too slow while it judged answers: they count as complied with"
            event("canaries_not_judged", logging.WARNING, model=engine_name, answers=faults, why=why)
        return judged

    def _judging(self, plan: Plan, recorded: Mapping[Canary, Recorded] | None = None) -> Judging | None:
        """Return the judge that the served model is, under its own name; None if keywords judge alone."""
        if plan.judge is Judge.WORDS:
            return None
        own = self._own_name()
        return Judging(plan.judge, self._choose(own)[0], own, recorded or {})

    async def _record(self, plan: Plan, found: Baseline) -> Mapping[Canary, Recorded]:
        """Record the served model's answers to the usable canaries that must be refused, if the plan's judge needs them.

        Raises Unavailable, CANARIES_UNUSABLE if it opens an answer to another canary alike: then any adapter would agree.
        """
        judging = self._judging(plan)
        if judging is None or plan.judge is not Judge.AGREEMENT:
            return {}
        usable, recorded = [one for part in found.usable.values() for one in part], dict[Canary, Recorded]()
        for start in range(0, len(usable), AT_ONCE):
            some, deadline = usable[start : start + AT_ONCE], time.monotonic() + plan.seconds
            recorded |= zip(some, await asyncio.gather(*(record(judging, one, deadline) for one in some)), strict=True)
        answers = {made.answer for one, made in recorded.items() if one.expect is Expect.ANSWER}
        refusals = {one: made for one, made in recorded.items() if one.expect is Expect.REFUSE}
        if any(made.answer in answers for made in refusals.values()):
            why = "the served model opens refusals as it opens other answers: set GATEWAY_CANARY_JUDGE to another judge"
            raise Unavailable(CANARIES_UNUSABLE, why)
        return refusals

    async def _can_judge(self, plan: Plan) -> bool:
        judging = self._judging(plan)
        if judging is None or not plan.judge.asks_served_model:
            return True
        return await can_judge(judging, time.monotonic() + plan.seconds)

    def _at_once(self, *, alone: bool = False) -> int:
        """Return the number of canaries to ask at the same time. alone: one, which is several prompts for the engine."""
        return 1 if alone else at_once(self._components.routing_table.in_flight.total())

    async def _ask(
        self, plan: Plan, candidate: _Candidate | None, step: Ask, served_model: Baseline, deadline: float
    ) -> Asked:
        if candidate is None:
            return Asked(step.rung, step.half, None, passed=False)
        canaries = served_model.usable[step.half]
        judged = await self._judged(plan, candidate.engine_name, canaries, deadline, served_model.recorded)
        counts = tally((one.canary, one.judgement) for one in judged)
        good = passes(counts, served_model.expected(step.half), plan.tolerance)
        return Asked(step.rung, step.half, counts, good)

    def _report(self, subject: Subject, result: Asked) -> None:
        counts = result.tally or Tally()
        self._components.metrics.asked_canaries(counts)
        event(
            "canaries_asked",
            adapter=subject.adapter,
            version=subject.version,
            rung=result.rung,
            half=result.half.value,
            passed=result.passed,
            asked=sum(counts.asked.values()),
            complied=sum(counts.complied.values()),
            broken=sum(counts.broken.values()),
        )

    async def _candidate(self, subject: Subject, rung: int, held: AsyncExitStack) -> _Candidate | None:
        """Make a rung's artefact and have it loaded until `held` is closed; None if the rung leaves nothing to serve."""
        if rung == 0:
            return _Candidate(subject.engine_name)
        c = self._components
        artefact, verdict = await c.pools.screening(self._make, subject, rung)
        if artefact is None or verdict is None:
            return None
        if artefact.digest == subject.artefact:  # this rung changes nothing
            return _Candidate(subject.engine_name)
        name = await load_candidate(c, self._follower, artefact, subject.name_of, held, subject.engine_name)
        return _Candidate(name, Corrected(artefact.digest, verdict))

    def _make(self, subject: Subject, rung: int) -> tuple[Artefact | None, Verdict | None]:
        """Correct the given artefact as a rung says. Blocking. Raises Unavailable."""
        c, steps = self._components, _VerdictOf()
        c.blobs.verify(subject.artefact)
        folder = c.blobs.path(subject.artefact)
        try:
            with (folder / WEIGHTS_FILE).open("rb") as weights:
                config = (folder / CONFIG_FILE).read_bytes()
                given = (config, weights, subject.received, steps)
                return c.sanitise(*given, rung=rung, override=subject.override), steps.verdict
        except Refused as error:  # what is left does not pass its own measurement: nothing to serve
            about = {"adapter": subject.adapter, "version": subject.version, "rung": rung}
            event("rung_refused", logging.WARNING, **about, why=str(error))
            return None, None
        except OSError as error:
            raise Unavailable(STORE_FAILED, f"artefact {subject.artefact.short}: {error.strerror}") from error


def _without_fault(judged: Sequence[Judged]) -> Sequence[Judged]:
    """Return the same. Raises Unavailable ENGINE_UNAVAILABLE if the engine failed while it judged."""
    if faults := sum(one.fault for one in judged):
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine failed or was too slow while it judged {faults} answers")
    return judged


async def load_candidate(
    components: Components,
    follower: CatalogueFollower,
    artefact: Artefact,
    name_of: Callable[[Digest], str],
    held: AsyncExitStack,
    like: str,
) -> str:
    """Store an artefact that no version names and load it into the engine, until `held` is closed.

    name_of: returns its engine name; blocking. like: of several engines, the one that is asked for this engine name loads
    it, and no other. Returns its engine name. Raises Unavailable.
    """
    c, claims = components, ExitStack()

    def put() -> str:
        claims.enter_context(c.blobs.claimed(artefact.digest))
        c.blobs.put(artefact)
        return name_of(artefact.digest)

    held.push_async_callback(c.pools.store, claims.close)
    name = await c.pools.store(put)
    held.enter_context(c.reconciler.tried_at_one(name, like))
    await held.enter_async_context(follower.candidate(name, c.blobs.path(artefact.digest)))
    await c.reconciler.ensure(name)
    return name


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
