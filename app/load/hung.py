"""Finds an engine whose core hangs. vLLM's server goes on saying that it is well, and listing its models.

What tells is what answers bring (pulse.py): an engine that owes some and brings no byte of any is hung, or busy with a long
prompt, or with answers that are not streamed. Its metrics tell these apart, because some move with every step of the core;
and at last one token is asked for. Where metrics tell nothing of the core (vLLM with --disable-log-stats), that token could
wait behind a full batch: such an engine is not suspected before its answers are given up anyway.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from app.errors import Unavailable
from app.load.engine import SILENCE_S, Engine
from app.load.probe import probe

SILENT_S: Final = 60.0
"""Seconds of silence before an engine is suspected: one step through a long prompt takes a CPU tens of them."""

LOOK_S: Final = 5.0
"""Seconds between looks. Nothing is asked of an engine that is heard of, or owes nothing."""

PROBE_S: Final = 10.0
"""Seconds that a suspect's one token may take."""

AGAIN_S: Final = 1.0
"""Seconds until one that hangs is asked again."""

PROGRESS: Final = (b"vllm:kv_cache_usage_perc", b"vllm:prompt_tokens_total", b"vllm:generation_tokens_total")
"""Of vLLM's metrics those that only the core's steps move, the first also in the midst of a prompt."""


class HungWatch:
    """Watches one engine.

    silent_s: seconds before it is suspected. on_change: called after `hung` changed.
    """

    def __init__(self, engine: Engine, silent_s: float, on_change: Callable[[], None]) -> None:
        self.hung = False
        self._engine = engine
        self._silent_s = silent_s
        self._on_change = on_change
        self._progress: bytes | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(AGAIN_S if self.hung else LOOK_S)
            try:
                await self.look()
            except Exception:  # a bug must not end the watch
                logging.getLogger("gateway").exception("watching for a hung engine broke")

    async def look(self) -> None:
        """Look once."""
        pulse = self._engine.pulse
        suspected = pulse.silent_s >= self._silent_s
        if not suspected and (not pulse.waiting or pulse.silent_s < LOOK_S):
            self._progress = None
        elif await self._moves_on():
            pulse.heard()
        elif pulse.silent_s >= self._patience:
            await self._ask()
        self._set(pulse.silent_s >= self._patience)

    @property
    def _patience(self) -> float:
        """Seconds of silence that prove something; one that was found hung stays so until it is heard."""
        return self._silent_s if self.hung or self._progress else max(self._silent_s, SILENCE_S)

    async def _moves_on(self) -> bool:
        """Whether its metrics show that the core has taken a step since the look before."""
        before, self._progress = self._progress, None
        with contextlib.suppress(Unavailable):
            lines = (await self._engine.exposition()).splitlines()
            self._progress = b"\n".join(line for line in lines if line.startswith(PROGRESS))
        return None not in (before, self._progress) and before != self._progress

    async def _ask(self) -> None:
        """For one token of the served model. Whatever comes is heard where it is read."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(PROBE_S):
                for own in [name for name in await self._engine.models() if "@" not in name][:1]:
                    await probe(self._engine, own)

    def _set(self, hung: bool) -> None:
        if hung == self.hung:
            return
        self.hung = hung
        said = "its server answers, but it computes nothing: it counts as away" if hung else "it computes again"
        logging.getLogger("gateway").warning("engine hung: %s", said)
        self._on_change()
