"""Fleet: several engines behind one gateway, each with a Reconciler of its own.

Every engine is to hold every desired adapter. A request goes to an engine that holds its adapter now; if that engine
could not be reached, or had lost the adapter, it goes to the next one. A request that may have run is never sent twice.
The death of an engine therefore costs its requests in flight and nothing else. An engine that comes back gets requests
for an adapter only once that was verified, loaded and probed there again, and gets none before it holds everything as
long as other engines do.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, GatewayError, Unavailable
from app.load.client.engine import HttpEngine
from app.load.client.metrics_merge import merged
from app.load.fleet.member import CheckedEngine, Member, Result
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import DRAIN_S, Reconciler

OTHERS_S: Final = 10.0
"""Seconds that a version loaded in one engine waits for the others before it is served: all but slow ones hold it by
then."""

CROWDED_FACTOR: Final = 1.25
CROWDED_MORE: Final = 4
"""An adapter's preferred engine is passed over if it has more requests in flight than CROWDED_FACTOR times the mean
plus CROWDED_MORE: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018). A few more cost a
batch little."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """State of one engine. failing: adapters whose last load failed. flying: requests in flight."""

    number: int
    address: str
    up: bool
    caught_up: bool
    loaded: int
    failing: int
    flying: int


class Fleet:
    """Several engines, with the interface that Reconciler has for one.

    engines: in the order of the setting.
    callbacks: callbacks of each engine's reconciler.
    on_result: called with the number of an engine and the result of each request to it.
    make_reconciler: creates the reconciler of one engine.
    """

    def __init__(
        self,
        engines: Sequence[CheckedEngine],
        callbacks: Callbacks,
        *,
        on_result: Callable[[int, Result], None] = lambda _number, _result: None,
        make_reconciler: Callable[[HttpEngine, Callbacks], Reconciler] = Reconciler,
    ) -> None:
        self._callbacks, self._on_result, self._make_reconciler = callbacks, on_result, make_reconciler
        self._one_at_a_time = asyncio.Lock()
        self._late: set[asyncio.Task[None]] = set()
        self._leaving: dict[Member, asyncio.Task[None]] = {}
        self._started = False
        self._complete = True  # whether the set of engines is known
        self._turn = 0
        self._tried_at: dict[str, Member] = {}  # engine name → the only engine that is to hold it
        self.joined: Callable[[Member], None] = lambda _: None
        self.parted: Callable[[Member], None] = lambda _: None
        self.members: tuple[Member, ...] = ()
        for engine in engines:
            self.join(engine)

    # ---- membership ------------------------------------------------------------------------------------------------

    def join(self, engine: CheckedEngine, key: str | None = None) -> Member:
        """Add an engine under the lowest free number; from now on it is filled and gets requests. key: see Member."""
        taken = {member.number for member in (*self.members, *self._leaving)}
        number = next(n for n in count(1) if n not in taken)
        callbacks = replace(self._callbacks, after_pass=self._after_pass, desired=lambda: self._desired_of(number))
        made = Member(number, engine, self._make_reconciler(engine, callbacks), self._on_result, key)
        self.members = tuple(sorted((*self.members, made), key=lambda member: member.number))
        self.joined(made)
        if self._started:
            made.reconciler.start()
        return made

    def part(self, member: Member) -> None:
        """Remove an engine: it gets no more requests, and is closed once its requests in flight have ended."""
        self.members = tuple(one for one in self.members if one is not member)
        self._leaving[member] = asyncio.create_task(self._drain_and_close(member))
        self._callbacks.on_change()

    async def _drain_and_close(self, member: Member) -> None:
        await member.reconciler.stop()
        while member.flying:  # noqa: ASYNC110 - relays decrement it, and cannot signal an event
            await asyncio.sleep(DRAIN_S)
        await member.engine.close()
        del self._leaving[member]
        self.parted(member)

    # ---- requests ------------------------------------------------------------------------------------------------

    def choose(self, name: str) -> Sequence[Member]:
        """Return the engines that answer to `name` now, in the order in which they are to be tried.

        Each adapter has a preferred engine, which probably still has its prefixes and weights at hand; if that one is
        crowded, the next one comes first. Requests for the served model go to the engine with the fewest in flight.
        Raises Unavailable ENGINE_UNAVAILABLE if no engine answers to `name`.
        """
        holding = [member for member in self.members if member.holds(name)]
        if not holding:
            raise Unavailable(ENGINE_UNAVAILABLE, "no engine answers just now")
        if "@" in name:
            crowded = CROWDED_FACTOR * sum(m.flying for m in holding) / len(holding) + CROWDED_MORE
            holding.sort(key=lambda m: m.affinity(name), reverse=True)
            holding.sort(key=lambda m: (not m.caught_up, m.flying if m.flying > crowded else 0))
        else:
            self._turn += 1
            place = {member: place for place, member in enumerate(self.members)}  # numbers may have gaps
            holding.sort(key=lambda m: (not m.caught_up, m.flying, (place[m] + self._turn) % len(place)))
        return holding

    async def healthy(self) -> bool:
        """Return whether any engine answers and can compute."""
        return any(await asyncio.gather(*(member.healthy() for member in self.members)))

    async def exposition(self) -> bytes:
        """Return the metrics of all engines that give theirs, each series with the label `engine`.

        Raises Unavailable if none does.
        """
        answers = await asyncio.gather(*(member.engine.exposition() for member in self.members), return_exceptions=True)
        texts: dict[str, bytes] = {}
        for member, text in zip(self.members, answers, strict=True):
            if isinstance(text, bytes):
                texts[str(member.number)] = text
            elif not isinstance(text, Unavailable):
                raise text
        if not texts:
            raise Unavailable(ENGINE_UNAVAILABLE, "no engine tells its metrics")
        return merged(texts)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(member.engine.close() for member in (*self.members, *self._leaving)))

    # ---- interface of Reconciler -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def tried_at_one(self, name: str, like: str) -> Iterator[None]:
        """Have one engine alone hold `name` for the duration of the context: the one that is asked first for `like`.

        If that engine leaves, every engine is to hold it. Raises Unavailable ENGINE_UNAVAILABLE as `choose`.
        """
        if name in self._tried_at:  # the same bytes are tried already
            yield
            return
        self._tried_at[name] = self.choose(like)[0]
        try:
            yield
        finally:
            del self._tried_at[name]
            self.poke()

    @property
    def each(self) -> tuple[Reconciler, ...]:
        """Reconcilers of the engines, one each."""
        return tuple(member.reconciler for member in self.members)

    @property
    def known(self) -> bool:
        """True if `may_read` is complete: the set of engines is known, and each of them answers."""
        return self._complete and all(one.known for one in self.each)

    @property
    def engine_up(self) -> bool:
        """True if any engine answered when it was last asked."""
        return any(one.engine_up for one in self.each)

    @property
    def loaded(self) -> frozenset[str]:
        """Engine names that at least one engine holds, verified and probed."""
        return frozenset().union(*(one.loaded for one in self.each))

    @property
    def failures(self) -> Mapping[str, str]:
        """Engine name → reason why it is not loaded, from the first engine where it failed."""
        found: dict[str, str] = {}
        for member in self.members:
            for name, why in member.reconciler.failures.items():
                found.setdefault(name, f"engine {member.number}: {why}")
        return found

    def is_loaded(self, name: str) -> bool:
        """Return whether requests may be sent to `name` now."""
        return any(one.is_loaded(name) for one in self.each)

    def may_read(self) -> frozenset[str]:
        """Return the engine names whose files an engine may read now; valid only while every engine is up."""
        return frozenset().union(*(one.may_read() for one in self.each))

    def forget_failure(self, name: str) -> None:
        """See Reconciler.forget_failure."""
        for one in self.each:
            one.forget_failure(name)

    def poke(self) -> None:
        """Check all engines again now."""
        for one in self.each:
            one.poke()

    def start(self) -> None:
        """Start the background tasks. Needs a running loop."""
        self._started = True
        for one in self.each:
            one.start()

    async def stop(self) -> None:
        """Stop the background tasks; the engines keep their adapters."""
        self._started = False
        late = (*self._late, *self._leaving.values())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in self.each))

    async def ensure(self, name: str) -> None:
        """Load and probe `name` in every engine that answers, but wait only OTHERS_S for the others once one has it.

        Raises like Reconciler.ensure if no engine has it: LOAD_FAILED if one of them answered and refused these bytes.
        """
        asked = [one for one in self._trying(name) if one.engine_up] or self._trying(name)
        if not asked:
            raise Unavailable(ENGINE_UNAVAILABLE, "no engine answers just now")
        waiting = {asyncio.create_task(one.ensure(name)) for one in asked}
        errors: list[GatewayError] = []
        try:
            while waiting and len(errors) + len(waiting) == len(asked):  # none has it yet
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                errors += _failed(done)
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=OTHERS_S)
        except BaseException:
            for task in waiting:
                task.cancel()
            raise
        for task in waiting:
            self._late.add(task)
            task.add_done_callback(self._late_ended)
        if len(errors) == len(asked):
            raise next((error for error in errors if error.code is LOAD_FAILED), errors[0])

    def report(self) -> tuple[EngineReport, ...]:
        """Return the state of each engine."""
        return tuple(
            EngineReport(
                member.number,
                _address(member.engine.url),
                member.reconciler.engine_up,
                member.caught_up,
                len(member.reconciler.loaded),
                len(member.reconciler.failures),
                member.flying,
            )
            for member in self.members
        )

    # ---- internals -------------------------------------------------------------------------------------------------

    def _trying(self, name: str) -> tuple[Reconciler, ...]:
        """Return the reconcilers of the engines that are to hold `name`."""
        member = self._tried_at.get(name)
        return (member.reconciler,) if member in self.members and member is not None else self.each

    def _desired_of(self, number: int) -> Mapping[str, Path]:
        """Return what one engine is to hold."""
        desired = self._callbacks.desired()
        elsewhere = {
            name for name, member in self._tried_at.items() if member in self.members and member.number != number
        }
        return {name: path for name, path in desired.items() if name not in elsewhere} if elsewhere else desired

    async def _after_pass(self) -> None:
        async with self._one_at_a_time:
            await self._callbacks.after_pass()

    def _late_ended(self, task: asyncio.Task[None]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # its reconciler has recorded it


def _failed(done: set[asyncio.Task[None]]) -> list[GatewayError]:
    """Return the gateway errors of tasks that are done. Raises any other exception, which is a bug."""
    errors: list[GatewayError] = []
    for task in done:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
        except GatewayError as error:
            errors.append(error)
    return errors


def _address(url: str) -> str:
    """Return an engine's address for display: host and port, without a path of this machine."""
    return "unix socket" if url.startswith("unix:") else url.partition("://")[2].partition("/")[0]
