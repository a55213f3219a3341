"""Accounts: what this gateway process holds of one tenant's limits.

Of a limit that other gateways share, a portion is drawn from the catalogue, and requests take from the portion. While the
catalogue does not answer, and always if it is this gateway's own, requests take from a bucket in memory instead.
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from app.domain.errors import RATE_LIMITED, Refused
from app.domain.tenant_limits import RATES, Flow
from app.store.catalogue.limits import Draw, Drawn

PORTION: Final = 0.05
"""Part of a limit that is drawn beyond what is needed: a gateway that holds it unused keeps that part from the others."""

RENEW_S: Final = 10.0
"""Seconds after which slots of running requests are drawn again: a third of the time for which they stay drawn."""

DRAW_S: Final = 1.0
"""Seconds that a request waits for a draw: a database that hangs must not hold requests."""

AGAIN_S: Final = 1
"""Seconds after which a refused caller may try again for a slot: nobody knows when a request ends."""

_ROUNDING: Final = 1e-6
"""Amount by which sums of floats may be too small."""

Waiter = asyncio.Future[bool]
"""Future of a request that waits for a draw: whether the amount was taken for it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Owner and subject of an account. alone: the catalogue is this gateway's own. touched: called when the account may
    have to draw, or to give back. refused: called when a request was refused."""

    tenant: str
    flow: Flow
    alone: bool
    touched: Callable[["Account"], None]
    refused: Callable[[str, Flow], None]


class Account(ABC):
    """Account of one flow of one tenant. Used on the event loop only."""

    def __init__(self, terms: Terms, limit: int) -> None:
        self.terms, self.limit = terms, limit
        self._away = False  # the last draw failed, or takes too long
        self._used = False  # since the last sync
        self._waiting: dict[Waiter, float] = {}  # → amount

    async def take(self, amount: float) -> None:
        """Take an amount; wait for a draw of at most DRAW_S if there is too little. Raises Refused RATE_LIMITED."""
        self._used = True
        if self.limit <= 0 or not await self._taken(amount):
            self.terms.refused(self.terms.tenant, self.terms.flow)
            raise self._refusal(amount)

    @abstractmethod
    def put_back(self, amount: float) -> None:
        """Put an amount back that was taken; below 0: take more, also beyond what there is."""

    @abstractmethod
    def relimit(self, limit: int) -> None:
        """Put another limit in force."""

    @abstractmethod
    def to_draw(self, *, sync: bool) -> Draw | None:
        """Serve requests from what is held, and return the draw to make for the others; None: none.

        sync: also give back what is not used, and tell what was taken beyond what was drawn.
        """

    @abstractmethod
    def drew(self, drawn: Drawn) -> None:
        """Take in the result of a draw."""

    def failed(self, draw: Draw) -> None:
        """Take in that a draw failed, or that nobody knows how it ended: go on alone."""
        if not self._away:
            self._begin_alone()
        self._away = True

    def serve(self, waiters: Sequence[Waiter]) -> None:
        """Serve these of the requests that wait; those for which there is too little are refused."""
        for waiter in waiters:
            if waiter in self._waiting and not waiter.done():
                waiter.set_result(self._take_now(self._waiting[waiter]))

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """Requests that wait for a draw."""
        return tuple(self._waiting)

    @property
    @abstractmethod
    def idle(self) -> bool:
        """True if there is nothing to draw or to give back before the next request."""

    @property
    @abstractmethod
    def left(self) -> int:
        """Amount that is left of the limit, as far as this process knows."""

    @abstractmethod
    def seconds_until(self, left: float) -> float:
        """Return the time after which so much is left, if nothing more is taken."""

    @abstractmethod
    def _take_now(self, amount: float) -> bool:
        """Take an amount from what is held, or alone; return whether there was enough."""

    @abstractmethod
    def _begin_alone(self) -> None:
        """Count alone from now on."""

    @property
    def _by_itself(self) -> bool:
        return self.terms.alone or self._away

    @property
    def _ahead(self) -> int:
        return math.floor(self.limit * PORTION)

    async def _taken(self, amount: float) -> bool:
        if self._by_itself or not self._waiting:
            taken = self._take_now(amount)
            if taken or self._by_itself:
                self.terms.touched(self)
                return taken
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = amount
        self.terms.touched(self)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAW_S):
                    return await waiter
            if not self._away:
                self._begin_alone()
                self._away = True
            return waiter.result() if waiter.done() and not waiter.cancelled() else self._take_now(amount)
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.put_back(amount)
            raise
        finally:
            del self._waiting[waiter]

    def _serve_what_fits(self) -> None:
        for waiter, amount in self._waiting.items():
            if not waiter.done() and self._take_now(amount):
                waiter.set_result(True)

    def _wanted(self) -> float:
        return sum(amount for waiter, amount in self._waiting.items() if not waiter.done())

    def _refusal(self, amount: float) -> Refused:
        wait = max(AGAIN_S, math.ceil(self.seconds_until(amount)))
        message = f"{self.limit} {RATES[self.terms.flow].words} are allowed to the tenant {self.terms.tenant}"
        return Refused(RATE_LIMITED, message, retry_after=wait)


class BucketAccount(Account):
    """Account of a flow that refills evenly."""

    def __init__(self, terms: Terms, limit: int) -> None:
        super().__init__(terms, limit)
        self._period_s = RATES[terms.flow].period_s or 1.0
        self._portion = 0.0  # drawn and not taken; below 0: taken beyond it
        self._untold = 0.0  # taken alone since the catalogue went away
        self._left, self._at = float(limit), time.monotonic()  # alone: in the bucket; else: not drawn, at the last draw

    def put_back(self, amount: float) -> None:
        """See Account."""
        if self._by_itself:
            self._settle(amount)
            self._untold -= amount if self._away else 0.0
        else:
            self._portion += amount
        self.terms.touched(self)

    def relimit(self, limit: int) -> None:
        """See Account. What was drawn from a limit that others share stays drawn until the next sync."""
        self._settle(0.0)
        self._left, self.limit = min(self._left, float(limit)), limit

    def to_draw(self, *, sync: bool) -> Draw | None:
        """See Account."""
        if not self._away:
            self._serve_what_fits()
        wanted = self._wanted()
        more = max(0.0, wanted - self._portion + self._ahead) if wanted else 0.0
        back = -self._untold
        if sync and not wanted:
            kept = self._ahead if self._used else 0.0
            back += self._portion - kept if self._portion > kept or self._portion < 0 else 0.0
            self._used = False
        if not (more or (back and sync) or (self._away and sync)):
            return None
        self._portion -= back + self._untold
        self._untold = 0.0
        return Draw(self.terms.tenant, self.terms.flow, more, back)

    def drew(self, drawn: Drawn) -> None:
        """See Account."""
        self._away = False
        self._portion += drawn.got
        self._left, self._at = drawn.left, time.monotonic()

    def failed(self, draw: Draw) -> None:
        """See Account. What was to be given back may have been, and is not given back twice; a debt may be told twice."""
        super().failed(draw)
        self._untold += max(0.0, -draw.back)

    @property
    def idle(self) -> bool:
        """See Account."""
        return not (self._used or self._waiting or self._portion or self._untold or self._away)

    @property
    def left(self) -> int:
        """See Account."""
        return max(0, min(self.limit, math.floor(self._refilled() + self._held)))

    def seconds_until(self, left: float) -> float:
        """See Account."""
        missing = left - self._refilled() - self._held
        if missing <= 0:
            return 0.0
        return missing * self._period_s / self.limit if self.limit else self._period_s

    def _take_now(self, amount: float) -> bool:
        if self._by_itself:
            self._settle(0.0)
            if self._left < amount - _ROUNDING:
                return False
            self._left -= amount
            self._untold += amount if self._away else 0.0
        else:
            if self._portion < amount - _ROUNDING:
                return False
            self._portion -= amount
        return True

    def _begin_alone(self) -> None:
        self._left, self._at, self._portion = float(self.limit), time.monotonic(), min(0.0, self._portion)

    @property
    def _held(self) -> float:
        return 0.0 if self._by_itself else self._portion

    def _refilled(self) -> float:
        gained = (time.monotonic() - self._at) * self.limit / self._period_s
        return min(float(self.limit), self._left + gained)

    def _settle(self, amount: float) -> None:
        """Let the bucket refill until now, and put an amount into it."""
        self._left, self._at = min(float(self.limit), self._refilled() + amount), time.monotonic()


class SlotAccount(Account):
    """Account of requests that run at one time."""

    def __init__(self, terms: Terms, limit: int) -> None:
        super().__init__(terms, limit)
        self._running = 0
        self._slots = 0  # drawn, those of running requests among them
        self._left = float(limit)  # not drawn by any gateway, at the last draw
        self._renew_at = 0.0

    def put_back(self, amount: float) -> None:
        """See Account."""
        self._running -= int(amount)
        if self._left < 0:  # more are drawn than there are now: none of them is used again
            self._slots = max(self._running, self._slots - int(amount))
        self.terms.touched(self)

    def relimit(self, limit: int) -> None:
        """See Account."""
        self._left += limit - self.limit
        self.limit, self._renew_at = limit, 0.0
        self.terms.touched(self)

    def to_draw(self, *, sync: bool) -> Draw | None:
        """See Account."""
        if not self._away:
            self._serve_what_fits()
        wanted, kept = self._wanted(), max(self._slots, self._running)
        more = max(0.0, wanted - (self._slots - self._running) + self._ahead) if wanted else 0.0
        renewed = self._running > 0 and time.monotonic() >= self._renew_at
        if sync and not wanted:
            kept = min(kept, self._running + (self._ahead if self._used else 0))
            self._used = False
        if not (more or renewed or kept != self._slots or (self._away and sync)):
            return None
        self._slots, self._renew_at = kept, time.monotonic() + RENEW_S
        return Draw(self.terms.tenant, self.terms.flow, more, keep=kept)

    def drew(self, drawn: Drawn) -> None:
        """See Account."""
        self._away = False
        self._slots += int(drawn.got)
        self._left = drawn.left

    @property
    def idle(self) -> bool:
        """See Account."""
        return not (self._used or self._waiting or self._running or self._slots or self._away)

    @property
    def left(self) -> int:
        """See Account."""
        return max(0, self.limit - self._running)

    def seconds_until(self, left: float) -> float:
        """See Account: unknown."""
        return 0.0

    def _take_now(self, amount: float) -> bool:
        after = self._running + int(amount)
        if after > self.limit or (not self._by_itself and after > self._slots):
            return False
        self._running = after
        return True

    def _begin_alone(self) -> None:
        """Nothing to do: each gateway then allows the whole limit."""
