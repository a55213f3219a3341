"""Callbacks of a reconciler: the source of the desired state, and the listeners."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.load.client.identity import Identify, unidentified
from app.load.reconcile.hung import SILENT_S


class AfterPass:
    """Signal after each pass that found the engine up; connected once the use cases exist."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[], Awaitable[None]], ...] = ()

    def connect(self, *listeners: Callable[[], Awaitable[None]]) -> None:
        """Await these, one after the other, after each pass from now on."""
        self._listeners = listeners

    async def __call__(self) -> None:
        """Send the signal."""
        for listener in self._listeners:
            await listener()


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Desired state and listeners.

    desired: returns engine name → artefact directory; called anew at each step.
    verify: checks the bytes at a path before the engine reads them (blocking, run in a thread); raises GatewayError.
    interval_s: seconds between passes.
    silent_s: seconds without a byte of any answer the engine owes, after which it is suspected to hang (hung.py).
    idle: returns whether an engine name has no request in flight.
    on_change: called after engine_up, loaded or failures changed.
    on_try: called after each attempt to load, with True if it succeeded.
    on_lost: called with the number of loaded adapters that the engine has lost.
    after_pass: awaited after each pass that found the engine up.
    identify: returns the identity of the engine's model.
    """

    desired: Callable[[], Mapping[str, Path]]
    verify: Callable[[str, Path], None]
    interval_s: float = 5.0
    silent_s: float = SILENT_S
    idle: Callable[[str], bool] = lambda _: True
    on_change: Callable[[], None] = lambda: None
    on_try: Callable[[bool], None] = lambda _: None
    on_lost: Callable[[int], None] = lambda _: None
    after_pass: Callable[[], Awaitable[None]] = field(default_factory=AfterPass)
    identify: Identify = unidentified
