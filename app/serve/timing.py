"""What is heard about each request, for metrics; and the clock that one request carries."""

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from app.domain.errors import GatewayError
from app.serve.routing_table import Target

CLIENT_GONE: Final = 499
"""Status under which a request is counted that its client left: nginx's word for it."""

GONE: Final = "client_gone"
"""And the code."""


class Hooks(Protocol):
    """Must not block or raise."""

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """A request is over. seconds: since its body was read. usage: OpenAI's token counts, where the engine said them."""

    def failed(self, target: Target, code: str) -> None:
        """It is over because it failed. code: the error's, or GONE."""

    def first_token(self, target: Target, seconds: float) -> None:
        """The first token of a stream arrived. seconds: since the request's body was read."""

    def more_tokens(self, target: Target, seconds: float, pieces: int) -> None:
        """Further pieces of text arrived together, `seconds` after those before."""

    def own_work(self, seconds: float) -> None:
        """Seconds of our own work on one request, waiting left out."""


class NoHooks:
    """Hears nothing."""

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Nothing."""

    def failed(self, target: Target, code: str) -> None:
        """Nothing."""

    def first_token(self, target: Target, seconds: float) -> None:
        """Nothing."""

    def more_tokens(self, target: Target, seconds: float, pieces: int) -> None:
        """Nothing."""

    def own_work(self, seconds: float) -> None:
        """Nothing."""


class Clock:
    """One request's times: how long in all, how long of it we worked, and when its tokens came."""

    __slots__ = ("_arrived", "_began", "_first", "_hooks", "_last", "_own", "_pieces", "_target", "_working")

    def __init__(self, hooks: Hooks, target: Target, began: float, waited: float = 0.0) -> None:
        """began: time.monotonic() when the body had been read; we have been working since, but for `waited` seconds."""
        self._hooks = hooks
        self._target = target
        self._began = began
        self._arrived = began  # when our work last began: with the body, or with what the engine sent
        self._working = True
        self._own = -waited
        self._last: float | None = None
        self._first = self._pieces = 0

    def wait(self) -> None:
        """Our work stops here: the engine's turn, or the client's."""
        if self._working:
            self._working = False
            self._own += time.monotonic() - self._arrived
            self._tell()

    def work(self) -> None:
        """Our work goes on: something arrived."""
        if not self._working:
            self._working = True
            self._arrived = time.monotonic()

    @property
    def worked(self) -> float:
        """Seconds of our own work so far."""
        return self._own + (time.monotonic() - self._arrived if self._working else 0.0)

    def text(self, first: int, pieces: int) -> None:
        """It held text: `pieces` in all, `first` of them of the first choice, whose pace is measured."""
        self._first += first
        self._pieces += pieces

    def _tell(self) -> None:
        first, last, self._first = self._first, self._last, 0
        if first:
            self._last = self._arrived
            if last is None:
                self._hooks.first_token(self._target, self._arrived - self._began)
            else:
                self._hooks.more_tokens(self._target, self._arrived - last, first)

    def over(self, status: int, usage: Mapping[str, Any] | None, code: str | None = None) -> None:
        """The request is over. A stream that was cut short says no usage: then its pieces of text count as tokens."""
        self.wait()
        if usage is None and self._pieces:
            usage = {"completion_tokens": self._pieces}
        self._hooks.answered(self._target, status, time.monotonic() - self._began, usage)
        self._hooks.own_work(self._own)
        if code is not None:
            self._hooks.failed(self._target, code)

    def failed(self, error: GatewayError) -> None:
        """It is over, and failed."""
        self.over(error.code.status, None, error.code.name)

    def gone(self) -> None:
        """It is over: the client left."""
        self.over(CLIENT_GONE, None, GONE)
