"""Detection of an engine whose core hangs while vLLM's server still reports that it is healthy and lists its models.

The sign is the silence of its answers (pulse.py): an engine that owes some and sends no byte of any is hung, or busy
with a long prompt, or with answers that are not streamed. Its metrics tell these apart, because some change with every
step of the core; as a last check one token is requested. If the metrics show nothing of the core (vLLM with
--disable-log-stats), that token could wait behind a full batch: such an engine is not suspected before its pending
answers time out anyway.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable
from typing import Final

from app.domain.errors import Unavailable
from app.load.client.engine import SILENCE_S, Engine
from app.load.client.probe import probe

SILENT_S: Final = 60.0
"""Seconds of silence before an engine is suspected: one step through a long prompt takes a CPU tens of them."""

LOOK_S: Final = 5.0
"""Seconds between checks. Nothing is requested from an engine that sends bytes, or owes none."""

PROBE_S: Final = 10.0
"""Seconds that the one token of a suspected engine may take."""

AGAIN_S: Final = 1.0
"""Seconds between checks of an engine that hangs."""

PROGRESS: Final = (b"vllm:kv_cache_usage_perc", b"vllm:prompt_tokens_total", b"vllm:generation_tokens_total")
"""Metrics of vLLM that change only with the core's steps, the first also in the middle of a prompt."""


DEFERRED: Final = re.compile(
    rb'^vllm:num_requests_waiting_by_reason\{[^}]*reason="deferred"[^}]*\} ([0-9.e+]+)', re.MULTILINE
)
"""Pattern of vLLM's metric of requests that the core sets aside while other work, mostly compiling a schema, is done."""

DEFERRED_S: Final = 60.0
"""Seconds for which requests may stay deferred before that is logged: compiling takes ten by its estimate."""

DEFERRED_LOOK_S: Final = 20.0
"""Seconds between checks for deferred requests."""


class HungWatch:
    """Watch over one engine's core.

    silent_s: seconds of silence before it is suspected.
    on_change: called after `hung` changed.
    """

    def __init__(self, engine: Engine, silent_s: float, on_change: Callable[[], None]) -> None:
        self.hung = False
        self._engine = engine
        self._silent_s = silent_s
        self._on_change = on_change
        self._progress: bytes | None = None
        self._deferred_since: float | None = None
        self._deferred_logged = False

    async def run(self) -> None:
        """Check again and again until cancelled."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(AGAIN_S if self.hung else LOOK_S)
            try:
                await self.look()
                if time.monotonic() - looked >= DEFERRED_LOOK_S:
                    looked = time.monotonic()
                    await self.look_at_deferred(looked)
            except Exception:  # a bug must not end the watch
                logging.getLogger("gateway").exception("watching for a hung engine broke")

    async def look(self) -> None:
        """Check once."""
        pulse = self._engine.pulse
        suspected = pulse.silent_s >= self._silent_s
        if not suspected and (not pulse.waiting or pulse.silent_s < LOOK_S):
            self._progress = None
        elif await self._moves_on():
            pulse.heard()
        elif pulse.silent_s >= self._patience:
            await self._ask()
        self._set(pulse.silent_s >= self._patience)

    async def look_at_deferred(self, now: float) -> None:
        """Check once for requests that stay deferred while others are answered; `now` by the monotonic clock.

        They are only logged: the engine answers all requests without a schema, and ending it would end those.
        """
        waiting = 0.0
        if self._engine.pulse.waiting:
            with contextlib.suppress(Unavailable):
                waiting = sum(map(float, DEFERRED.findall(await self._engine.exposition())))
        if not waiting:
            if self._deferred_logged:
                logging.getLogger("gateway").warning("engine deferred: no request waits deferred any more")
            self._deferred_since, self._deferred_logged = None, False
            return
        self._deferred_since = now if self._deferred_since is None else self._deferred_since
        if now - self._deferred_since >= DEFERRED_S and not self._deferred_logged:
            self._deferred_logged = True
            logging.getLogger("gateway").warning(
                "engine deferred: %.0f requests wait deferred, some for over %.0f s: its compiler of schemas is busy or "
                "stuck, and all that bring a schema wait for it",
                waiting,
                DEFERRED_S,
            )

    @property
    def _patience(self) -> float:
        """Seconds of silence that count as proof; an engine that was found hung stays so until it sends something."""
        return self._silent_s if self.hung or self._progress else max(self._silent_s, SILENCE_S)

    async def _moves_on(self) -> bool:
        """Return whether the metrics show that the core has taken a step since the previous check."""
        before, self._progress = self._progress, None
        with contextlib.suppress(Unavailable):
            lines = (await self._engine.exposition()).splitlines()
            self._progress = b"\n".join(line for line in lines if line.startswith(PROGRESS))
        return None not in (before, self._progress) and before != self._progress

    async def _ask(self) -> None:
        """Request one token of the served model. Its bytes reach the pulse where they are read."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(PROBE_S):
                for own in [name for name in await self._engine.models() if "@" not in name][:1]:
                    await probe(self._engine, own)

    def _set(self, hung: bool) -> None:
        if hung == self.hung:
            return
        self.hung = hung
        message = "its server answers, but it computes nothing: it counts as away" if hung else "it computes again"
        logging.getLogger("gateway").warning("engine hung: %s", message)
        self._on_change()
