"""Admission to the engine: each request holds a share of the engine's sequences, tokens and schemas until it ends.

Schemas are held for a minimum time too. A request that finds too little free waits briefly for it. A caller that
already holds some while others wait is refused instead, and has to retry.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from app.domain.errors import INVALID_REQUEST, SHARE_TAKEN, Refused
from app.domain.shares import Resource, Shares
from app.serve.request_load import Load

WAIT_S: Final = 5.0
"""Seconds that a request waits for its share; after that, retrying is the caller's decision."""

SCHEMA_UNIT_S: Final = 0.0004
"""Seconds that a unit of a schema's cost is held at least: four times what compiling it takes (grammar_cost.py).

Compiling takes processor time from every other request's next token, however soon its own request ends; so it gets a
quarter of the time."""

NOBODY: Final = "(shadow)"
"""Holder of what is taken for work that nobody waits for; no caller has this name."""

MAX_WAITING: Final = 8
"""Waiting requests of one caller, at most: their bodies are in memory."""


class Admission:
    """Admission control of requests to the engine. Used on the event loop only."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._waiting: Counter[str] = Counter()
        self._freed = asyncio.Event()

    async def admit(self, who: str, load: Load, held: ExitStack) -> None:
        """Take the amounts in `load` for the caller `who`, and register their release with `held`.

        Raises Refused: INVALID_REQUEST for more than one caller may ever hold, SHARE_TAKEN while others hold too much.
        """
        needs = _needs(load)
        for resource, amount in needs.items():
            if amount > (most := self._shares.most(resource)):
                raise Refused(INVALID_REQUEST, f"{amount} {resource.value} in one request, the cap here is {most}")
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while True:
            try:
                held.enter_context(self._take(who, needs))
            except Refused:
                if self._must_yield(who) or not await self._wait_for_release(who, deadline):
                    raise
            else:
                return

    def spare(self, load: Load, held: ExitStack) -> None:
        """Take the amounts in `load` for work that nobody waits for, if no request waits and half of each stays free.

        Raises Refused SHARE_TAKEN.
        """
        needs = _needs(load)
        busy = [
            one for one, amount in needs.items() if self._shares.in_use(one) + amount > self._shares.limit(one) // 2
        ]
        if busy or self._waiting:
            raise Refused(SHARE_TAKEN, "the engine has others to answer")
        held.enter_context(self._take(NOBODY, needs))

    def _must_yield(self, who: str) -> bool:
        """Return whether the caller must not wait: others wait while it is served, or too many of its requests wait."""
        others = self._waiting.total() > self._waiting[who]
        return (others and self._shares.held(Resource.SEQUENCES, who) > 0) or self._waiting[who] >= MAX_WAITING

    async def _wait_for_release(self, who: str, deadline: float) -> bool:
        """Wait until a share was released; return False when the time is up."""
        self._waiting[who] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._freed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting[who] -= 1
            self._waiting += Counter()  # drops callers without a waiting request
        return True

    @contextmanager
    def _take(self, who: str, needs: dict[Resource, int]) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        compiled_at = loop.time() + needs[Resource.SCHEMAS] * SCHEMA_UNIT_S
        with ExitStack() as taken, ExitStack() as schemas:
            for resource, amount in needs.items():
                if amount:
                    held = schemas if resource is Resource.SCHEMAS else taken
                    held.enter_context(self._shares.take(resource, who, amount))
            schemas.callback(self._wake)
            later = schemas.pop_all()
            try:
                yield
            finally:
                taken.close()
                self._wake()
                if loop.time() >= compiled_at:
                    later.close()
                else:
                    loop.call_at(compiled_at, later.close)

    def _wake(self) -> None:
        """Wake the requests that wait now: a share was released."""
        self._freed.set()
        self._freed.clear()


def _needs(load: Load) -> dict[Resource, int]:
    return {Resource.SEQUENCES: load.sequences, Resource.TOKENS: load.tokens, Resource.SCHEMAS: load.schemas}
