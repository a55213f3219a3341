"""Callbacks of a reconciler: where the desired state comes from, and who is called about what."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.load.client.identity import Identify, unidentified
from app.load.reconcile.hung import SILENT_S


class AfterPass:
    """Signal after each pass that found the engine up; connected once the use case that publishes exists."""

    def __init__(self) -> None:
        self._listener: Callable[[], Awaitable[None]] | None = None

    def connect(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Await this after each pass from now on."""
        self._listener = listener

    async def __call__(self) -> None:
        """Send it."""
        if self._listener is not None:
            await self._listener()


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Desired state and listeners.

    desired: engine name → artefact directory, asked anew at each step. verify: checks the bytes at a path before the
    engine reads them (blocking, run in a thread), raises GatewayError. interval_s: seconds between passes. silent_s:
    seconds that an engine may owe answers and bring nothing of any before it is suspected (hung.py). idle: whether
    an engine name has no request in flight. on_change: called after engine_up, loaded or failures changed. on_try: told
    of each try to load, whether it did. on_lost: told how many loaded adapters the engine has forgotten. after_pass:
    awaited after each pass that found the engine up. identify: says whether the engine's model is the right one.
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
