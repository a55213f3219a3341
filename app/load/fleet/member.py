"""Engine of a fleet: counts its requests in flight, and makes its reconciler check it after a failed request."""

from collections.abc import AsyncIterator, Callable, Mapping
from hashlib import blake2b
from typing import Final, Literal

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.client.engine import JSON_HEADERS, EngineResponse, HttpEngine
from app.load.client.model_list import Cards
from app.load.client.response import NotReached
from app.load.reconcile.reconciler import Reconciler

NOT_FOUND: Final = 404
"""Status by which vLLM reports that it does not know the model: the request did not run."""

Result = Literal["answered", "unreached", "forgotten", "broken"]
"""Result of one request to one engine. unreached, forgotten: it did not run, and may go to another engine."""


class CheckedEngine(HttpEngine):
    """HttpEngine that lists its models only while it can compute.

    vLLM's server answers the list of models, its core answers the health check.
    """

    async def cards(self) -> Cards:
        """See Engine.cards. Raises Unavailable ENGINE_UNAVAILABLE, also if the core is dead."""
        if not await self.healthy():
            raise Unavailable(ENGINE_UNAVAILABLE, "the engine says it is not well")
        return await super().cards()


class Member:
    """Engine and its reconciler, as a target for requests.

    number: from 1, in the order of the setting or of appearance; the label in metrics.
    engine: client of the engine that `reconciler` reconciles.
    reconciler: reconciler of the engine.
    on_result: called with the number and the result of each request.
    key: identifies the engine when adapters are spread over engines, so it must be the same for all gateways; None: the
        number.
    """

    def __init__(
        self,
        number: int,
        engine: HttpEngine,
        reconciler: Reconciler,
        on_result: Callable[[int, Result], None],
        key: str | None = None,
    ) -> None:
        self.number = number
        self.engine = engine
        self.reconciler = reconciler
        reconciler.number = number
        self.flying = 0
        self._on_result = on_result
        self._key = str(number) if key is None else key

    @property
    def caught_up(self) -> bool:
        """See Reconciler.caught_up."""
        return self.reconciler.caught_up

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = JSON_HEADERS) -> EngineResponse:
        """See Engine.post.

        Raises NotReached if nothing was sent; the engine then counts as down until a check finds it again.
        """
        self.flying += 1
        try:
            response = await self.engine.post(path, body, headers)
        except NotReached:
            self.flying -= 1
            self._on_result(self.number, "unreached")
            self.reconciler.away()
            raise
        except BaseException as error:
            self.flying -= 1
            if isinstance(error, Unavailable):
                self.broke()
            raise
        if response.status == NOT_FOUND:
            self._on_result(self.number, "forgotten")
            self.reconciler.poke()
        else:
            self._on_result(self.number, "answered")
        return _Counted(response, self)

    async def healthy(self) -> bool:
        """See Engine.healthy."""
        return await self.engine.healthy()

    def broke(self) -> None:
        """Report that an answer broke off, and check at once whether the engine is still alive."""
        self._on_result(self.number, "broken")
        self.reconciler.poke()

    def holds(self, name: str) -> bool:
        """Return whether the engine answers to `name` now; names without `@` are the served model's."""
        return self.reconciler.is_loaded(name) if "@" in name else self.reconciler.engine_up

    def affinity(self, name: str) -> bytes:
        """Return the rank of this engine for `name`, highest first: rendezvous hashing (Thaler, Ravishankar 1998)."""
        return blake2b(f"{self._key} {name}".encode(), digest_size=8).digest()


class _Counted:
    """EngineResponse that counts as in flight until it is closed."""

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
