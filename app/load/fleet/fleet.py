"""Several engines behind one gateway, each looked after by a Reconciler of its own.

Every engine is to hold everything that is desired. A request goes to an engine that holds its adapter now, and if it turns
out that this engine could not be reached or had forgotten the adapter, to the next one; a request that may have run is
never sent twice. So the death of an engine costs what was in flight on it and nothing else. An engine that comes back gets
requests for an adapter only once that was verified, loaded and probed there again, and as long as others have everything,
none before it has.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, GatewayError, Unavailable
from app.load.client.engine import HttpEngine
from app.load.client.metrics_merge import merged
from app.load.fleet.member import CheckedEngine, Member, Result
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import DRAIN_S, Reconciler

OTHERS_S: Final = 10.0
"""Seconds that a version loaded in one engine waits for the others before it is served: all but the slow have it then."""

CROWDED_FACTOR: Final = 1.25
CROWDED_MORE: Final = 4
"""An adapter's own engine is passed over when it has more requests in flight than this many times the mean, and these
besides: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018); a few more cost a batch little."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """How one engine stands. failing: adapters that did not load when last tried. flying: requests in flight."""

    number: int
    address: str
    up: bool
    caught_up: bool
    loaded: int
    failing: int
    flying: int


class Fleet:
    """What Reconciler is to one engine, this is to several.

    engines: in the order of the setting. keeping: what each of them is to hold. heard: told what became of each request to
    each engine, by its number. keeper: makes what looks after one of them.
    """

    def __init__(
        self,
        engines: Sequence[CheckedEngine],
        callbacks: Callbacks,
        *,
        heard: Callable[[int, Result], None] = lambda _number, _result: None,
        keeper: Callable[[HttpEngine, Callbacks], Reconciler] = Reconciler,
    ) -> None:
        self._callbacks, self._heard, self._keeper = callbacks, heard, keeper
        self._one_at_a_time = asyncio.Lock()
        self._late: set[asyncio.Task[None]] = set()
        self._leaving: dict[Member, asyncio.Task[None]] = {}
        self._started = False
        self._complete = True  # whether it is known which engines there are
        self._turn = 0
        self.joined: Callable[[Member], None] = lambda _: None
        self.parted: Callable[[Member], None] = lambda _: None
        self.members: tuple[Member, ...] = ()
        for engine in engines:
            self.join(engine)

    # ---- who belongs to it -----------------------------------------------------------------------------------------

    def join(self, engine: CheckedEngine, key: str | None = None) -> Member:
        """One more engine, from now on filled and asked, under the lowest number that is free. key: see Member."""
        taken = {member.number for member in (*self.members, *self._leaving)}
        number = next(n for n in count(1) if n not in taken)
        told = replace(self._callbacks, after_pass=self._after_pass)
        made = Member(number, engine, self._keeper(engine, told), self._heard, key)
        self.members = tuple(sorted((*self.members, made), key=lambda member: member.number))
        self.joined(made)
        if self._started:
            made.keeper.start()
        return made

    def part(self, member: Member) -> None:
        """One engine less: asked for nothing more from now on, let go once what is in flight on it is over."""
        self.members = tuple(one for one in self.members if one is not member)
        self._leaving[member] = asyncio.create_task(self._let_go(member))
        self._callbacks.on_change()

    async def _let_go(self, member: Member) -> None:
        await member.keeper.stop()
        while member.flying:  # noqa: ASYNC110 - relays count it down, and know no events of ours
            await asyncio.sleep(DRAIN_S)
        await member.engine.close()
        del self._leaving[member]
        self.parted(member)

    # ---- requests ------------------------------------------------------------------------------------------------

    def choose(self, name: str) -> Sequence[Member]:
        """The engines that answer to `name` now, in the order they are to be tried.

        An adapter has an engine of its own, where its prefixes and weights are likely still at hand; when that one is
        crowded, the next. The served model goes where least is in flight. Raises Unavailable ENGINE_UNAVAILABLE when
        there is none.
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
        """Whether any engine answers and can compute."""
        return any(await asyncio.gather(*(member.healthy() for member in self.members)))

    async def exposition(self) -> bytes:
        """The metrics of all that tell theirs, each series with the label `engine`. Raises Unavailable if none does."""
        told = await asyncio.gather(*(member.engine.exposition() for member in self.members), return_exceptions=True)
        texts: dict[str, bytes] = {}
        for member, text in zip(self.members, told, strict=True):
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

    # ---- what Reconciler has too ---------------------------------------------------------------------------------

    @property
    def each(self) -> tuple[Reconciler, ...]:
        """One for each engine."""
        return tuple(member.keeper for member in self.members)

    @property
    def known(self) -> bool:
        """Whether `may_read` says all: it is known which engines there are, and each of them answers."""
        return self._complete and all(keeper.known for keeper in self.each)

    @property
    def engine_up(self) -> bool:
        """Whether any engine answered when it was last asked."""
        return any(keeper.engine_up for keeper in self.each)

    @property
    def loaded(self) -> frozenset[str]:
        """Engine names that at least one engine holds, verified and probed."""
        return frozenset().union(*(keeper.loaded for keeper in self.each))

    @property
    def failures(self) -> Mapping[str, str]:
        """Engine name → why it is not loaded, in whichever engine it is not."""
        found: dict[str, str] = {}
        for member in self.members:
            for name, why in member.keeper.failures.items():
                found.setdefault(name, f"engine {member.number}: {why}")
        return found

    def is_loaded(self, name: str) -> bool:
        """Whether requests may be sent to `name` now."""
        return any(keeper.is_loaded(name) for keeper in self.each)

    def may_read(self) -> frozenset[str]:
        """Engine names whose files an engine may read now; means something only while every one of them is up."""
        return frozenset().union(*(keeper.may_read() for keeper in self.each))

    def forget_failure(self, name: str) -> None:
        """See Reconciler.forget_failure."""
        for keeper in self.each:
            keeper.forget_failure(name)

    def poke(self) -> None:
        """Look at all of them again now."""
        for keeper in self.each:
            keeper.poke()

    def start(self) -> None:
        """Start the background tasks. Needs a running loop."""
        self._started = True
        for keeper in self.each:
            keeper.start()

    async def stop(self) -> None:
        """Stop the background tasks; the engines keep what they hold."""
        self._started = False
        late = (*self._late, *self._leaving.values())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*(keeper.stop() for keeper in self.each))

    async def ensure(self, name: str) -> None:
        """Have `name` loaded and probed in every engine that answers, but wait little for slow ones once one has it.

        Raises as Reconciler.ensure when none has: LOAD_FAILED when one of them, answering, refuses these bytes.
        """
        asked = [keeper for keeper in self.each if keeper.engine_up] or self.each
        if not asked:
            raise Unavailable(ENGINE_UNAVAILABLE, "no engine answers just now")
        waiting = {asyncio.create_task(keeper.ensure(name)) for keeper in asked}
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
            task.add_done_callback(self._in_the_end)
        if len(errors) == len(asked):
            raise next((error for error in errors if error.code is LOAD_FAILED), errors[0])

    def report(self) -> tuple[EngineReport, ...]:
        """How each engine stands."""
        return tuple(
            EngineReport(
                member.number,
                _address(member.engine.url),
                member.keeper.engine_up,
                member.caught_up,
                len(member.keeper.loaded),
                len(member.keeper.failures),
                member.flying,
            )
            for member in self.members
        )

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _after_pass(self) -> None:
        async with self._one_at_a_time:
            await self._callbacks.after_pass()

    def _in_the_end(self, task: asyncio.Task[None]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # its keeper has written it down


def _failed(done: set[asyncio.Task[None]]) -> list[GatewayError]:
    """What went wrong, of tasks that are done. A bug is raised."""
    errors: list[GatewayError] = []
    for task in done:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
        except GatewayError as error:
            errors.append(error)
    return errors


def _address(url: str) -> str:
    """As it may be shown: host and port, no path of this machine."""
    return "unix socket" if url.startswith("unix:") else url.partition("://")[2].partition("/")[0]
