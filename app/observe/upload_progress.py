"""Progress of uploads: the states each version has reached, in memory, for clients that watch.

Bounded: the newest MAX_VERSIONS versions, a handful of steps each. Versions dropped from here, or from before a
restart, are still in the catalogue; only their times are lost.
"""

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from app.domain.errors import CODES
from app.domain.tenants import split_name
from app.domain.version_state import IN_FLIGHT, State

MAX_VERSIONS: Final = 1024
"""Versions whose steps are kept; more than are ever in progress at once, at about a kilobyte each."""

KEEP_ALIVE_S: Final = 15.0
"""Seconds of silence after which a keep-alive is sent: proxies close a connection that is idle for 30 to 60 s."""

MAX_FOLLOW_S: Final = 900.0
"""Longest watch, seconds. A client that wants to watch longer connects again."""

_UNDER_WAY: Final = (State.RECEIVED, State.VALIDATED, State.SCREENED, State.STORED)
"""States of a version in progress, in their order."""


class Row(Protocol):
    """Fields of a version that its steps are made of."""

    @property
    def name(self) -> object:
        """Name of its adapter."""

    @property
    def number(self) -> int:
        """Number among its adapter's versions."""

    @property
    def state(self) -> State:
        """Current state."""

    @property
    def outcome(self) -> object | None:
        """Outcome of the verdict; None until screened."""

    @property
    def modules_total(self) -> int | None:
        """Number of modules; None until screened."""

    @property
    def modules_pruned(self) -> int | None:
        """Number of modules cut out; None until screened."""

    @property
    def modules_projected(self) -> int | None:
        """Number of modules projected; None until screened."""

    @property
    def error_code(self) -> str | None:
        """Name of a code in CODES, if the version was refused or failed."""

    @property
    def error_message(self) -> str | None:
        """Message of that error."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Step:
    """State that a version has reached. seconds: since the version was received; None if that was not seen here."""

    name: str
    version: int
    state: State
    seconds: float | None
    outcome: str | None
    modules_total: int | None
    modules_pruned: int | None
    modules_projected: int | None
    error_code: str | None
    error_message: str | None

    @property
    def final(self) -> bool:
        """True if no further state follows by itself."""
        return self.state not in _UNDER_WAY

    @property
    def deleted(self) -> bool:
        """True if the adapter was deleted."""
        return self.state is State.DELETED

    def json(self) -> dict[str, Any]:
        """Return plain JSON values; an error includes its hint."""
        code = CODES.get(self.error_code or "")
        error = {"code": self.error_code, "message": self.error_message, "hint": code.hint if code else None}
        return {
            "name": split_name(self.name)[1],
            "version": self.version,
            "state": self.state.value,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "outcome": self.outcome,
            "modules_total": self.modules_total,
            "modules_pruned": self.modules_pruned,
            "modules_projected": self.modules_projected,
            "error": error if self.error_code else None,
        }


class Follower:
    """Subscription of one watcher; `close` ends it."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self.loop = asyncio.get_running_loop()
        self.news = asyncio.Event()

    def close(self) -> None:
        """End the subscription."""
        self._progress.leave(self)

    async def steps(self, name: str, after: int) -> AsyncIterator[Step | None]:
        """Yield the past and coming steps of the newest version of `name` above `after`; wait for one to begin.

        Yields None after KEEP_ALIVE_S of silence. Ends with the version's final state, or after MAX_FOLLOW_S.
        """
        until, version, sent = time.monotonic() + MAX_FOLLOW_S, None, 0
        while time.monotonic() < until:
            self.news.clear()
            version = version or self._progress.newest(name, after)
            for step in self._progress.past(name, version)[sent:] if version else ():
                sent += 1
                yield step
                if step.final:
                    return
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await self.news.wait()
            except TimeoutError:
                yield None


class Progress:
    """Steps of the newest versions. Thread-safe: stages report from their threads, watchers wait in the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: OrderedDict[tuple[str, int], tuple[Step, ...]] = OrderedDict()
        self._started: dict[tuple[str, int], float] = {}
        self._followers: set[Follower] = set()

    def report(self, row: R) -> R:
        """Record a version's current state and return the row. A state reported already, or past, is ignored."""
        at = (str(row.name), row.number)
        with self._lock:
            steps = self._steps.get(at, ())
            if not _is_new(steps[-1].state if steps else None, row.state):
                return row
            self._steps[at] = (*steps, self._step(at, row))
            while len(self._steps) > MAX_VERSIONS:
                self._started.pop(self._steps.popitem(last=False)[0], None)
            self._wake()
        return row

    def report_again(self, row: R) -> R:
        """Restart a version that had ended: forget its steps and record this state as the first. Returns the row."""
        at = (str(row.name), row.number)
        with self._lock:
            self._steps.pop(at, None)
            self._started.pop(at, None)
        return self.report(row)

    def newest(self, name: str, after: int) -> int | None:
        """Return the highest number above `after` among this name's versions known here and not deleted, or None."""
        with self._lock:
            numbers = (at[1] for at, steps in self._steps.items() if at[0] == name and not steps[-1].deleted)
            return max((number for number in numbers if number > after), default=None)

    def past(self, name: str, version: int) -> tuple[Step, ...]:
        """Return the steps of one version so far."""
        with self._lock:
            return self._steps.get((name, version), ())

    def follower(self) -> Follower:
        """Return a new subscription for this event loop. The caller bounds their number (Resource.WATCHERS)."""
        follower = Follower(self)
        with self._lock:
            self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Remove a subscription."""
        with self._lock:
            self._followers.discard(follower)

    def _step(self, at: tuple[str, int], row: Row) -> Step:
        now = time.monotonic()
        if row.state is State.RECEIVED:
            self._started[at] = now
        start = self._started.get(at)
        return Step(
            name=at[0],
            version=at[1],
            state=row.state,
            seconds=None if start is None else now - start,
            outcome=None if row.outcome is None else str(row.outcome),
            modules_total=row.modules_total,
            modules_pruned=row.modules_pruned,
            modules_projected=row.modules_projected,
            error_code=row.error_code,
            error_message=row.error_message,
        )

    def _wake(self) -> None:
        for follower in self._followers:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                follower.loop.call_soon_threadsafe(follower.news.set)


def _is_new(last: State | None, now: State) -> bool:
    """Return whether `now` is to be recorded after `last`.

    Threads may report late: a stage is recorded only if it is later than the last one, an end if it differs.
    """
    if last is None or now not in _UNDER_WAY:
        return last is not now
    return last in _UNDER_WAY and _UNDER_WAY.index(now) > _UNDER_WAY.index(last)


assert set(_UNDER_WAY) == IN_FLIGHT | {State.STORED}
