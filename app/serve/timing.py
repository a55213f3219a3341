"""Timing of one request, and the hooks that receive it for metrics."""

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from app.domain.errors import GatewayError
from app.domain.usage import one_request
from app.serve.asker import Used
from app.serve.routing_table import Target

CLIENT_GONE: Final = 499
"""Status under which a request is counted if its client disconnected, as in nginx."""

GONE: Final = "client_gone"
"""Error code under which it is counted."""


class Hooks(Protocol):
    """Callbacks for metrics. They must not block or raise."""

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Record the end of a request.

        seconds: since its body was read.
        usage: OpenAI's token counts, if the engine gave any.
        """

    def failed(self, target: Target, code: str) -> None:
        """Record that a request ended because it failed. code: the error's, or GONE."""

    def first_token(self, target: Target, seconds: float) -> None:
        """Record the first token of a stream. seconds: since the request's body was read."""

    def more_tokens(self, target: Target, seconds: float, pieces: int) -> None:
        """Record further pieces of text that arrived together, `seconds` after the previous ones."""

    def own_work(self, seconds: float) -> None:
        """Record the seconds of the gateway's own work on one request, without waiting."""


class NoHooks:
    """Hooks that do nothing."""

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        """Do nothing."""

    def failed(self, target: Target, code: str) -> None:
        """Do nothing."""

    def first_token(self, target: Target, seconds: float) -> None:
        """Do nothing."""

    def more_tokens(self, target: Target, seconds: float, pieces: int) -> None:
        """Do nothing."""

    def own_work(self, seconds: float) -> None:
        """Do nothing."""


class Clock:
    """Clock of one request: its total time, the gateway's own work within it, and the arrival of its tokens."""

    __slots__ = ("_arrived", "_began", "_first", "_hooks", "_last", "_own", "_pieces", "_target", "_working", "used")

    def __init__(self, hooks: Hooks, target: Target, began: float, waited: float = 0.0) -> None:
        """began: time.monotonic() when the body had been read; all time since is own work, except `waited` seconds."""
        self._hooks = hooks
        self.used: Used | None = None  # called at the end with the token counts; set once an engine has the request
        self._target = target
        self._began = began
        self._arrived = began  # when own work last began: with the body, or with bytes of the engine
        self._working = True
        self._own = -waited
        self._last: float | None = None
        self._first = self._pieces = 0

    def wait(self) -> None:
        """Stop counting own work: the engine works now, or the client."""
        if self._working:
            self._working = False
            self._own += time.monotonic() - self._arrived
            self._report_tokens()

    def work(self) -> None:
        """Continue counting own work: something arrived."""
        if not self._working:
            self._working = True
            self._arrived = time.monotonic()

    @property
    def worked(self) -> float:
        """Seconds of own work so far."""
        return self._own + (time.monotonic() - self._arrived if self._working else 0.0)

    def text(self, first: int, pieces: int) -> None:
        """Count the text that arrived: `pieces` in all, `first` of them of the first choice, whose pace is measured."""
        self._first += first
        self._pieces += pieces

    def _report_tokens(self) -> None:
        first, last, self._first = self._first, self._last, 0
        if first:
            self._last = self._arrived
            if last is None:
                self._hooks.first_token(self._target, self._arrived - self._began)
            else:
                self._hooks.more_tokens(self._target, self._arrived - last, first)

    def over(self, status: int, usage: Mapping[str, Any] | None, code: str | None = None) -> None:
        """End the request. Of a stream that was cut short the pieces of text count as tokens, unless more were told."""
        self.wait()
        if self._pieces and (usage is None or code is not None):
            most = max(one_request(usage).completion_tokens, self._pieces)
            usage = {**(usage or {}), "completion_tokens": most}
        self._hooks.answered(self._target, status, time.monotonic() - self._began, usage)
        self._hooks.own_work(self._own)
        if self.used is not None:
            failed = usage is None and code not in (None, GONE)
            self.used(self._target, {} if failed else usage)  # empty: the engine did nothing for it
        if code is not None:
            self._hooks.failed(self._target, code)

    def failed(self, error: GatewayError) -> None:
        """End the request as failed."""
        self.over(error.code.status, None, error.code.name)

    def gone(self) -> None:
        """End the request as one whose client disconnected."""
        self.over(CLIENT_GONE, None, GONE)
