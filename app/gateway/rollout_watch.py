"""Watch over roll-outs: counts their requests by version, and aborts a guarded one whose new version does worse."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.errors import Refused, Unavailable
from app.domain.rollout import Rollout
from app.domain.rollout_guard import Tally, is_worse
from app.gateway.components import Components
from app.gateway.policy_recheck import is_judged
from app.gateway.rollouts import Rollouts
from app.observe.log import event
from app.observe.metrics import Metrics
from app.observe.rollout_metrics import FAILED
from app.serve.routing_table import Target
from app.serve.timing import CLIENT_GONE, NoHooks

Counted = Callable[[Target, int], None]
"""Called with the version and the status of each request of a roll-out that has ended."""


class LiveHooks:
    """Hooks of requests: the metrics of all, and of those of a roll-out by version."""

    def __init__(self, metrics: Metrics, counted: Counted) -> None:
        self._metrics = metrics
        self._counted = counted
        self.failed = metrics.failed
        self.more_tokens = metrics.more_tokens
        self.own_work = metrics.own_work

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Record the end of a request."""
        self._metrics.answered(target, status, seconds, usage)
        if target.part is not None:
            self._metrics.rollouts.answered(target, status, seconds, usage)
            self._counted(target, status)

    def first_token(self, target: Target, seconds: float) -> None:
        """Record the first token of a stream."""
        self._metrics.first_token(target, seconds)
        if target.part is not None:
            self._metrics.rollouts.first_token(target, seconds)


class ShadowHooks(NoHooks):
    """Hooks of copies for a shadow, which count as nobody's requests."""

    def __init__(self, metrics: Metrics, counted: Counted) -> None:
        self._metrics = metrics.rollouts
        self._counted = counted

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Record the end of a copy."""
        self._metrics.answered(target, status, seconds, usage)
        self._counted(target, status)

    def first_token(self, target: Target, seconds: float) -> None:
        """Record the first token of a stream."""
        self._metrics.first_token(target, seconds)


@dataclass(slots=True)
class _Guarded:
    """Guarded roll-out, and the tallies of its versions since its weights were set."""

    rollout: Rollout
    tallies: dict[int, Tally] = field(default_factory=dict)
    why: str | None = None


class RolloutGuard:
    """Guard of roll-outs. Counts what passes through this gateway. Used on the event loop."""

    def __init__(self, components: Components, rollouts: Rollouts) -> None:
        self._components = components
        self._rollouts = rollouts
        self._guarded: dict[str, _Guarded] = {}

    def counted(self, target: Target, status: int) -> None:
        """Count a request that has ended, and have the next pass abort the roll-out if its version does worse."""
        adapter, number = target.adapter or "", target.version or 0
        rollout = self._components.desired.state.rollouts.get(adapter)
        if rollout is None or not rollout.guard or number not in rollout.versions or status == CLIENT_GONE:
            return
        guarded = self._guarded.get(adapter)
        if guarded is None or guarded.rollout != rollout:
            guarded = self._guarded[adapter] = _Guarded(rollout)
        tally = guarded.tallies.get(number, Tally()).plus(failed=status >= FAILED)
        guarded.tallies[number] = tally
        stable = self._stable(adapter)
        if number != stable and is_worse(tally, against := guarded.tallies.get(stable or 0, Tally())):
            failed = f"{tally.failed} of {tally.requests} requests failed"
            guarded.why = f"version {number}: {failed}, of version {stable} {against.failed} of {against.requests}"
            self._components.reconciler.poke()

    async def look(self) -> None:
        """Abort the guarded roll-outs with a version that does worse, or is withheld. Called after each reconcile pass."""
        state = self._components.desired.state
        self._guarded = {name: one for name, one in self._guarded.items() if name in state.rollouts}
        for name, rollout in state.rollouts.items():
            if rollout.guard and (why := self._objection(name, rollout)) is not None:
                try:
                    await self._rollouts.abort(name, rollout, why)
                    self._guarded.pop(name, None)  # the next roll-out is judged by its own requests
                except Refused:  # ended, changed or deleted meanwhile, perhaps by another gateway's guard
                    continue
                except Unavailable as error:  # the catalogue is away: the next pass tries again
                    event("abort_postponed", logging.WARNING, adapter=name, why=error.message)

    def _objection(self, name: str, rollout: Rollout) -> str | None:
        """Return the reason to abort a roll-out; None if there is none."""
        guarded = self._guarded.get(name)
        if guarded is not None and guarded.rollout == rollout and guarded.why is not None:
            return guarded.why
        stable, withheld = self._stable(name), self._components.desired.state.withheld
        if stable is None:  # withheld itself: an abort would help nobody
            return None
        found = ((one, withheld.get((name, one))) for one in rollout.others(stable))
        judged = (f"version {one} is withheld: {why}" for one, why in found if why is not None and is_judged(why))
        return next(judged, None)

    def _stable(self, name: str) -> int | None:
        target = self._components.routing_table.snapshot.targets.get(name)
        return None if target is None else target.version
