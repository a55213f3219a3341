"""What becomes of each upload while it happens: the stages its version reached, in memory, for whoever watches.

Bounded: the newest MAX_VERSIONS versions, a handful of steps each. What is forgotten, or was
before a restart, still stands in the catalogue; only its times are gone.
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
from app.domain.version_state import IN_FLIGHT, State

MAX_VERSIONS: Final = 1024
"""Versions whose steps are kept; more than are ever under way at once, at about a kilobyte each."""

KEEP_ALIVE_S: Final = 15.0
"""Seconds of silence after which something is sent: proxies cut a connection that says nothing for 30 to 60 s."""

MAX_FOLLOW_S: Final = 900.0
"""Longest watch, seconds. Who wants to watch on asks again."""

_UNDER_WAY: Final = (State.RECEIVED, State.VALIDATED, State.SCREENED, State.STORED)
"""Not the end yet, in their order."""


class Row(Protocol):
    """What is looked at of a version."""

    @property
    def name(self) -> object:
        """Its adapter's."""

    @property
    def number(self) -> int:
        """Among its adapter's versions."""

    @property
    def state(self) -> State:
        """Where it is in its life."""

    @property
    def outcome(self) -> object | None:
        """None until screened."""

    @property
    def modules_total(self) -> int | None:
        """None until screened."""

    @property
    def modules_pruned(self) -> int | None:
        """None until screened."""

    @property
    def modules_projected(self) -> int | None:
        """None until screened."""

    @property
    def error_code(self) -> str | None:
        """A name from CODES, where it was refused."""

    @property
    def error_message(self) -> str | None:
        """What goes with it."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Step:
    """A version has reached a state. seconds: since its first step here; None when that was not seen."""

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
        """Nothing follows by itself."""
        return self.state not in _UNDER_WAY

    @property
    def deleted(self) -> bool:
        """Its adapter is gone."""
        return self.state is State.DELETED

    def json(self) -> dict[str, Any]:
        """As plain JSON values; an error brings its hint."""
        code = CODES.get(self.error_code or "")
        error = {"code": self.error_code, "message": self.error_message, "hint": code.hint if code else None}
        return {
            "name": self.name,
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
    """One watcher's place; `close` gives it back."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self.loop = asyncio.get_running_loop()
        self.news = asyncio.Event()

    def close(self) -> None:
        """Watch no longer."""
        self._progress.leave(self)

    async def steps(self, name: str, after: int) -> AsyncIterator[Step | None]:
        """The steps, past and to come, of the newest version of `name` above `after`; waits for one to begin.

        None stands for KEEP_ALIVE_S of silence. Ends with the version's final state, or after MAX_FOLLOW_S.
        """
        until, version, told = time.monotonic() + MAX_FOLLOW_S, None, 0
        while time.monotonic() < until:
            self.news.clear()
            version = version or self._progress.newest(name, after)
            for step in self._progress.past(name, version)[told:] if version else ():
                told += 1
                yield step
                if step.final:
                    return
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await self.news.wait()
            except TimeoutError:
                yield None


class Progress:
    """The steps of the newest versions. Safe for threads: stages tell from theirs, watchers wait in the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: OrderedDict[tuple[str, int], tuple[Step, ...]] = OrderedDict()
        self._started: dict[tuple[str, int], float] = {}
        self._followers: set[Follower] = set()

    def report(self, row: R) -> R:
        """Note the state a version is in now, and give the row back. What was told already, or is past, is no news."""
        at = (str(row.name), row.number)
        with self._lock:
            steps = self._steps.get(at, ())
            if not _is_news(steps[-1].state if steps else None, row.state):
                return row
            self._steps[at] = (*steps, self._step(at, row))
            while len(self._steps) > MAX_VERSIONS:
                self._started.pop(self._steps.popitem(last=False)[0], None)
            self._wake()
        return row

    def report_again(self, row: R) -> R:
        """A version that had ended begins again: what was told of it is forgotten, and this is its first step."""
        at = (str(row.name), row.number)
        with self._lock:
            self._steps.pop(at, None)
            self._started.pop(at, None)
        return self.report(row)

    def newest(self, name: str, after: int) -> int | None:
        """The highest number above `after` among the versions of this name that are known here and not deleted."""
        with self._lock:
            there = (at[1] for at, steps in self._steps.items() if at[0] == name and not steps[-1].deleted)
            return max((number for number in there if number > after), default=None)

    def past(self, name: str, version: int) -> tuple[Step, ...]:
        """What happened to one version so far."""
        with self._lock:
            return self._steps.get((name, version), ())

    def follower(self) -> Follower:
        """A place to watch from, in this event loop. The caller bounds their number (Resource.WATCHERS)."""
        follower = Follower(self)
        with self._lock:
            self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Give up a place."""
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


def _is_news(last: State | None, now: State) -> bool:
    """Threads may tell late: of the stages only a later one is news, of the ends any other."""
    if last is None or now not in _UNDER_WAY:
        return last is not now
    return last in _UNDER_WAY and _UNDER_WAY.index(now) > _UNDER_WAY.index(last)


assert set(_UNDER_WAY) == IN_FLIGHT | {State.STORED}
