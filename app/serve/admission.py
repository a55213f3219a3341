"""Admission to the engine: each request holds its sequences, tokens and schemas of what callers share until it has ended,
and its schemas for some time at least.

Who finds too little free waits a moment for it. Who holds some already while others wait is told to come back instead.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from app.domain.errors import INVALID_REQUEST, Refused
from app.domain.shares import Resource, Shares
from app.serve.request import Load

WAIT_S: Final = 5.0
"""Seconds that a request waits for its share; after them trying again is the caller's decision."""

SCHEMA_UNIT_S: Final = 0.0004
"""Seconds that a unit of a schema's cost is held at least, four times what compiling it takes (grammar_cost.py).

Compiling takes the processor from everybody's next token, however soon the request ends; so it has a quarter of the time.
"""

MAX_WAITING: Final = 8
"""Requests of one caller that wait: their bodies are in memory."""


class Admission:
    """Admits requests to the engine. Used on the event loop only."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._waiting: Counter[str] = Counter()
        self._freed = asyncio.Event()

    async def admit(self, who: str, load: Load, held: ExitStack) -> None:
        """Take what `load` needs for the caller `who` and have `held` give it back.

        Raises Refused INVALID_REQUEST for more than one caller may ever hold, SHARE_TAKEN when others hold too much.
        """
        needs = {Resource.SEQUENCES: load.sequences, Resource.TOKENS: load.tokens, Resource.SCHEMAS: load.schemas}
        for resource, amount in needs.items():
            if amount > (most := self._shares.most(resource)):
                raise Refused(INVALID_REQUEST, f"{amount} {resource.value} in one request, the cap here is {most}")
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while True:
            try:
                held.enter_context(self._take(who, needs))
            except Refused:
                if self._yields(who) or not await self._change(who, deadline):
                    raise
            else:
                return

    def _yields(self, who: str) -> bool:
        """Whether others come first: they wait, and this caller is being served. Or too much of its own waits already."""
        others = self._waiting.total() > self._waiting[who]
        return (others and self._shares.held(Resource.SEQUENCES, who) > 0) or self._waiting[who] >= MAX_WAITING

    async def _change(self, who: str, deadline: float) -> bool:
        """Wait until something was given back; False when the time is up."""
        self._waiting[who] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._freed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting[who] -= 1
            self._waiting += Counter()  # callers that wait for nothing are forgotten
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
        """Wake those that wait now: something was given back."""
        self._freed.set()
        self._freed.clear()
