"""Recheck of published versions on canaries, in the background: after the battery changed, and at intervals.

A version that fails is withheld until it passes: the name answers again after a rollback to a version that passes, or after
an upload that does. A version that could not be asked stays as it was, because a busy engine must not take away what is
served; it is asked again later.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Final

from app.domain.errors import GatewayError, Unavailable
from app.domain.version_state import State
from app.evaluate.plan import Plan
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.desired_state import DesiredState, Key
from app.gateway.evaluation import Evaluation
from app.observe.log import event
from app.store.catalogue.tables import VersionRow

LOOK_S: Final = 5.0
"""Seconds between two looks for versions that are due."""

PAUSE_S: Final = 1.0
"""Seconds between two versions: uploads that wait to be evaluated take their turn, and serving has the engine alone."""

RETRY_S: Final = 60.0
"""Seconds after which a version is asked again that could not be asked."""


class CanaryRecheck:
    """Background task that asks published versions again.

    every_s: seconds after which a version is asked again; 0: only after a start and after a change of the battery.
    """

    def __init__(
        self, components: Components, follower: CatalogueFollower, evaluation: Evaluation, every_s: float
    ) -> None:
        self._components = components
        self._follower = follower
        self._evaluation = evaluation
        self._every_s = every_s
        self._asked: dict[Key, tuple[str, float]] = {}  # version → key of the plan, and when it was asked last
        self._retry_at: dict[Key, float] = {}
        self._poked = asyncio.Event()
        self._looked_at: DesiredState | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task. Needs a running loop."""
        self._task = asyncio.create_task(self._run(), name="canary recheck")

    async def stop(self) -> None:
        """Cancel the task; what it was asking stays as it was."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def poke(self) -> None:
        """Look for versions that are due now."""
        self._poked.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except GatewayError as error:
                event("canaries_postponed", logging.WARNING, why=error.message)
            except Exception:  # a bug must not end the task
                logging.getLogger("gateway").exception("asking again broke")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._poked.wait()
            self._poked.clear()

    async def _look(self) -> None:
        """Ask every version that is due, the active ones first."""
        c = self._components
        state, rules = c.desired.state, (c.rules.operators, c.rules.of_tenants)
        if not c.reconciler.engine_up or not self._worth_reading(state):
            return
        rows = await c.pools.store(c.catalogue.served)
        due = self._due(rows)
        self._looked_at = state
        if not due:
            return
        self._retry_at |= dict.fromkeys((row.key for row, _ in due), time.monotonic() + RETRY_S)  # until each was asked
        passes: dict[str, bool] = {}  # whether the served model does, by the plan's baseline_key
        for row, plan in due:
            if plan.baseline_key not in passes:
                passes[plan.baseline_key] = await self._may_be_asked(plan)
            if passes[plan.baseline_key]:
                await self._ask(plan, row)
                await asyncio.sleep(PAUSE_S)
            if (c.rules.operators, c.rules.of_tenants) != rules:
                self._retry_at.clear()  # those whose plan is another now are due by the new one
                return

    async def _may_be_asked(self, plan: Plan) -> bool:
        """Return whether the served model passes a plan; False if that is not known, which must not keep others waiting."""
        try:
            if await self._evaluation.served_model_passes(plan):
                return True
        except Unavailable as error:
            event("canaries_not_asked_again", logging.WARNING, battery=plan.battery.digest.short, why=error.message)
            return False
        why = "the engine's own model fails canaries that it passed before: no version is judged by it"
        event("served_model_changed", logging.ERROR, why=why)
        return False

    def _worth_reading(self, state: DesiredState) -> bool:
        """Return whether a version may be due: the catalogue or the rules changed, or time has passed."""
        now = time.monotonic()
        waited = any(at <= now for at in self._retry_at.values())
        aged = self._every_s > 0 and any(now - at >= self._every_s for _, at in self._asked.values())
        return waited or aged or state is not self._looked_at

    def _due(self, rows: Sequence[VersionRow]) -> list[tuple[VersionRow, Plan]]:
        """Return the rows to be asked now, with their plan, and forget versions that are gone."""
        state, now, found = self._components.desired.state, time.monotonic(), list[tuple[VersionRow, Plan]]()
        present = {row.key for row in rows}
        self._asked = {key: asked for key, asked in self._asked.items() if key in present}
        self._retry_at = {key: at for key, at in self._retry_at.items() if key in present}
        for row in rows:
            if (plan := self._components.rules_of(row).plan) is None:
                continue
            failed = row.failed_evaluation == plan.key
            withheld = row.key in state.withheld and not failed  # by the policy: it is not in the engine
            if row.engine_name is None or withheld or state.is_unloaded(row) or self._retry_at.get(row.key, 0.0) > now:
                continue
            asked = self._asked.get(row.key)
            if asked is None or asked[0] != plan.key:
                if row.evaluated == plan.key and not failed:  # passed, before this start or just now
                    self._asked[row.key] = plan.key, now
                    continue
            elif not self._every_s or now - asked[1] < self._every_s:
                continue
            found.append((row, plan))
        return sorted(found, key=lambda one: one[0].state is not State.READY)

    async def _ask(self, plan: Plan, row: VersionRow) -> None:
        c = self._components
        try:
            now = await self._evaluation.run_again(plan, row)
        except Unavailable as error:
            event("canaries_postponed", logging.WARNING, adapter=row.name, version=row.number, why=error.message)
            return
        self._retry_at.pop(row.key, None)
        self._asked[row.key] = plan.key, time.monotonic()
        failed = now.failed_evaluation == plan.key
        c.metrics.asked_again("failed" if failed else "passed")
        level = logging.ERROR if failed else logging.INFO
        event("canaries_asked_again", level, adapter=row.name, version=row.number, passed=not failed)
        await self._follower.refresh()
