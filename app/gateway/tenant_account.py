"""Account of one flow of one tenant in this process: the portion of its limit that requests may take from at once."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from app.domain.errors import RATE_LIMITED, Refused
from app.domain.tenant_limits import RATES, Flow
from app.store.catalogue.limits import Draw, Drawn

PORTION: Final = 0.05
"""Part of a limit that is drawn beyond what is needed: a gateway that holds it unused keeps that part from the others."""

RENEW_S: Final = 10.0
"""Seconds after which slots of running requests are drawn again: a third of the time for which they stay drawn."""

AGAIN_S: Final = 1
"""Seconds after which a refused caller may try again for a slot: nobody knows when a request ends."""


_ROUNDING: Final = 1e-6
"""Amount by which sums of floats may be too small."""


class Account:
    """What this process holds of a limit. Used on the event loop only.

    alone: no other gateway draws from it. touched: called when it changed: it may have to draw, or to give back.
    refused: called when a request was refused.
    """

    def __init__(
        self,
        tenant: str,
        flow: Flow,
        limit: int,
        touched: Callable[["Account"], None],
        refused: Callable[[str, Flow], None],
        *,
        alone: bool,
    ) -> None:
        self.tenant, self.flow, self.limit, self.alone = tenant, flow, limit, alone
        self._touched, self._refused = touched, refused
        self._period_s = RATES[flow].period_s
        self._portion = 0.0  # drawn and not taken; below 0: taken beyond it
        self._running = 0  # slots that are taken, of CONCURRENT
        self._left, self._at = float(limit), time.monotonic()  # not drawn by any gateway, at the last draw
        self._renew_at = 0.0
        self._used = False  # since the last sync
        self._waiting: deque[tuple[float, asyncio.Future[bool]]] = deque()

    async def take(self, amount: float) -> None:
        """Take an amount; if the portion is too small, wait for a draw. Raises Refused RATE_LIMITED."""
        self._used = True
        if self.alone and self._portion < amount:
            self.draw_alone(amount - self._portion)
        taken = self._take(amount)
        if not taken and not self.alone:
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, future))
            self._touched(self)
            try:
                taken = await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.result():
                    self.put_back(amount)
                raise
        if not taken:
            self._refused(self.tenant, self.flow)
            raise self._refusal(amount)

    def put_back(self, amount: float) -> None:
        """Put an amount back that was taken; below 0: take more, also beyond what there is."""
        self._portion += amount
        if self._period_s is None:
            self._running -= int(amount)
        self._touched(self)

    def relimit(self, limit: int) -> None:
        """Put another limit in force. What was drawn from a limit that others share stays drawn until the next sync."""
        left = self._refilled()
        if self.alone:
            left, self._portion = left + self._portion, 0.0
        self._left = left + limit - self.limit if self._period_s is None else min(left, float(limit))
        self.limit, self._at = limit, time.monotonic()

    def to_draw(self, *, sync: bool) -> Draw | None:
        """Return the draw to make now, whose amount to give back is taken from the portion; None: none.

        sync: also give back what is not used, or tell what was taken beyond the portion.
        """
        now = time.monotonic()
        more = back = 0.0
        if self._waiting:
            more = sum(amount for amount, _ in self._waiting) - self._portion + self._ahead
        elif sync:
            kept = self._ahead if self._used else 0.0
            back = self._portion - kept if self._portion > kept or self._portion < 0 else 0.0
            self._used = False
        renewed = self._running > 0 and now >= self._renew_at
        if not (more or back or renewed):
            return None
        self._portion -= back
        self._renew_at = now + RENEW_S
        return Draw(self.tenant, self.flow, more, back, self._running + int(self._portion))

    def drew(self, drawn: Drawn) -> None:
        """Add the result of a draw."""
        self._portion += drawn.got
        self._left, self._at = drawn.left, time.monotonic()

    def draw_alone(self, more: float) -> None:
        """Draw from what is left as far as this process knows."""
        left = self._refilled()
        got = max(0.0, min(more, left))
        self._portion += got
        self._left, self._at = left - got, time.monotonic()

    def serve(self, waited: int) -> None:
        """Serve the first `waited` requests that wait from the portion; those for which it is too small are refused."""
        for _ in range(waited):
            amount, future = self._waiting.popleft()
            if not future.done():
                future.set_result(self._take(amount))

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a draw."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """True if it holds nothing, and nothing was taken since the last sync."""
        return not (self._used or self._waiting or self._portion or self._running)

    @property
    def left(self) -> int:
        """Amount that is left of the limit, as far as this process knows."""
        return max(0, min(self.limit, math.floor(self._refilled() + self._portion)))

    def seconds_until(self, left: float) -> float:
        """Return the time after which so much is left, if nothing more is taken."""
        missing = left - self._refilled() - self._portion
        if missing <= 0 or self._period_s is None:
            return 0.0
        return missing * self._period_s / self.limit if self.limit else self._period_s

    @property
    def _ahead(self) -> float:
        return float(math.floor(self.limit * PORTION))

    def _take(self, amount: float) -> bool:
        if self._portion < amount - _ROUNDING or self._portion <= 0:
            return False
        self._portion -= amount
        if self._period_s is None:
            self._running += int(amount)
        return True

    def _refilled(self) -> float:
        if self._period_s is None:
            return self._left
        gained = (time.monotonic() - self._at) * self.limit / self._period_s
        return min(float(self.limit), self._left + gained)

    def _refusal(self, amount: float) -> Refused:
        wait = AGAIN_S if self._period_s is None else max(1, math.ceil(self.seconds_until(amount)))
        message = f"{self.limit} {RATES[self.flow].words} are allowed to the tenant {self.tenant}"
        return Refused(RATE_LIMITED, message, retry_after=wait)
