"""One engine of a fleet: counts what is in flight on it, and tells whoever watches it what a request noticed first."""

from collections.abc import AsyncIterator, Callable, Mapping
from hashlib import blake2b
from typing import Final, Literal

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.client.engine import JSON_HEADERS, EngineResponse, HttpEngine
from app.load.client.model_list import Cards
from app.load.client.response import NotReached
from app.load.reconcile.reconciler import Reconciler

NOT_FOUND: Final = 404
"""What vLLM answers when it does not know the model: it did not run."""

Result = Literal["answered", "unreached", "forgotten", "broken"]
"""What became of one request to one engine. unreached, forgotten: it did not run, and may go to another engine."""


class CheckedEngine(HttpEngine):
    """There only while it can compute: the list comes from its server, its health from its core."""

    async def cards(self) -> Cards:
        """See Engine.cards. Raises Unavailable ENGINE_UNAVAILABLE, also when its core is dead."""
        if not await self.healthy():
            raise Unavailable(ENGINE_UNAVAILABLE, "the engine says it is not well")
        return await super().cards()


class Member:
    """An engine and its keeper, for requests.

    number: from 1, in the order of the setting or of appearance; the label in metrics. key: what its share of the adapters
    hangs on, the same for all gateways; the number where that is. engine: the same the keeper looks after. heard: told
    what became of each request.
    """

    def __init__(
        self,
        number: int,
        engine: HttpEngine,
        keeper: Reconciler,
        heard: Callable[[int, Result], None],
        key: str | None = None,
    ) -> None:
        self.number = number
        self.engine = engine
        self.keeper = keeper
        keeper.number = number
        self.flying = 0
        self._heard = heard
        self._key = str(number) if key is None else key

    @property
    def caught_up(self) -> bool:
        """See Reconciler.caught_up."""
        return self.keeper.caught_up

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = JSON_HEADERS) -> EngineResponse:
        """See Engine.post. Raises NotReached when it did not even get there: then this engine is away until it is seen."""
        self.flying += 1
        try:
            response = await self.engine.post(path, body, headers)
        except NotReached:
            self.flying -= 1
            self._heard(self.number, "unreached")
            self.keeper.away()
            raise
        except BaseException as error:
            self.flying -= 1
            if isinstance(error, Unavailable):
                self.broke()
            raise
        if response.status == NOT_FOUND:
            self._heard(self.number, "forgotten")
            self.keeper.poke()
        else:
            self._heard(self.number, "answered")
        return _Counted(response, self)

    async def healthy(self) -> bool:
        """See Engine.healthy."""
        return await self.engine.healthy()

    def broke(self) -> None:
        """An answer broke off: look at once whether the engine still lives."""
        self._heard(self.number, "broken")
        self.keeper.poke()

    def holds(self, name: str) -> bool:
        """Whether it answers to `name` now; names without `@` are the served model's."""
        return self.keeper.is_loaded(name) if "@" in name else self.keeper.engine_up

    def affinity(self, name: str) -> bytes:
        """How much `name` belongs here, compared with the other members: rendezvous hashing (Thaler, Ravishankar 1998)."""
        return blake2b(f"{self._key} {name}".encode(), digest_size=8).digest()


class _Counted:
    """An answer that is in flight until it is closed."""

    __slots__ = ("_member", "_open", "_response")

    def __init__(self, response: EngineResponse, member: Member) -> None:
        self._response = response
        self._member = member
        self._open = True

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def content_type(self) -> str:
        return self._response.content_type

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.chunks():
                yield chunk
        except Unavailable:
            self._member.broke()
            raise

    async def read(self, limit: int) -> bytes:
        try:
            return await self._response.read(limit)
        except Unavailable:
            self._member.broke()
            raise

    def close(self) -> None:
        if self._open:
            self._open = False
            self._member.flying -= 1
        self._response.close()
