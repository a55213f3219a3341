"""Supervisor of an embedded vLLM API server: starts it, watches it, restarts it, and never leaves it running behind.

`child_wrapper.py` runs between the gateway and vLLM, and ends all of vLLM's processes when the gateway ends for
whatever reason. If the wrapper is killed too, the next start finds the remaining processes by the session recorded
beside the socket.
"""

import asyncio
import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app.concurrency.pools import Pool
from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.client.engine import HttpEngine
from app.load.embedded import orphans
from app.load.embedded.child_wrapper import OVER_MEMORY
from app.load.embedded.command import GRACE_S, EngineSpec, arguments, default_memory, environment, missing_library

CHILD_WRAPPER: Final = Path(__file__).with_name("child_wrapper.py")
SOCKET: Final = "engine.sock"
SESSION: Final = "engine.session"

SOCKET_DIR_LIMIT: Final = 107 - 37
"""Bytes of the directory's path, at most: a Unix socket's path may have 107, and vLLM names its own with a slash and
36 characters."""

LOG_BYTES: Final = 16 << 20
"""Bytes of one engine log file; two older ones are kept."""

LOG_TAIL: Final = 5
"""Last lines of the engine's log that are quoted if it died at start."""

READY_S: Final = 900.0
"""Seconds to become ready, after which it is killed and started again: time for a 70B checkpoint from a slow disk."""

POLL_S: Final = 0.5
"""Seconds between checks of an engine that is starting."""

PROGRESS_S: Final = 5.0
"""Seconds between progress messages while it is starting."""

HEALTH_S: Final = 5.0
HEALTH_MISSES: Final = 12
"""Seconds between health checks, and the number that must fail in a row before a hung engine is killed."""

HUNG_S: Final = 60.0
"""Seconds for which its core must be known to hang (hung.py) before it is killed, counted by those checks.

They equal the seconds of silence before it is suspected: an engine that recovers by itself still sends the answers
it owes, and keeps its adapters."""

BACKOFF_S: Final = 1.0
BACKOFF_LIMIT_S: Final = 60.0
"""Seconds before a dead engine is started again: doubled each time up to the limit, reset once it has run for longer
than that."""


class EmbeddedEngine:
    """Supervisor of one vLLM server. `client` is the client for it; `url` is the address for another HttpEngine.

    spec: model to serve, and its limits.
    socket_dir: private directory (made 0700, old sockets removed) for sockets and the session record, see
        `socket_home`.
    log_path: file for the engine's output.
    on_ready: called each time the engine has become ready, so that adapters are loaded again.
    on_restart: called each time it is started again.
    hangs: returns whether its core is known to hang.
    report: called with each progress message, one line.
    """

    def __init__(
        self,
        spec: EngineSpec,
        socket_dir: Path,
        log_path: Path,
        *,
        on_ready: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self.socket = socket_dir.absolute() / SOCKET
        self.log_path = log_path
        self.url = f"unix:{self.socket}"
        self.client = HttpEngine(self.url)
        self.generation = 0
        self.on_ready = on_ready
        self.on_restart: Callable[[], None] = lambda: None
        self.hangs: Callable[[], bool] = lambda: False
        self._report = report
        self._in_thread = Pool("engine", 1)
        self._record = self.socket.with_name(SESSION)
        self._wrapper: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._failure: Unavailable | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the wrapper, the leader of the engine's session; None while nothing runs."""
        return self._wrapper.pid if self._wrapper is not None and self._wrapper.returncode is None else None

    async def start(self) -> None:
        """Start the engine and its supervision; does not wait for it to be ready.

        Raises Unavailable ENGINE_UNAVAILABLE if it cannot be started here at all.
        """
        if missing := missing_library():
            raise Unavailable(ENGINE_UNAVAILABLE, missing)
        make_private(self.socket.parent)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if await self._in_thread(orphans.reap, self._record):
            self._report("ended an engine that an earlier gateway left behind")
        await self._spawn()
        self._watch = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def ready(self) -> None:
        """Wait until the engine is ready for the first time.

        Raises Unavailable ENGINE_UNAVAILABLE if that start failed. The supervisor keeps trying then; call `stop` to
        give up.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Stop the engine and every process it started. Takes up to the grace period."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        await self._end()
        await self.client.close()

    # ---- one run of the engine -----------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        for stale in self.socket.parent.iterdir():
            if stale.is_socket():
                stale.unlink(missing_ok=True)
        self._wrapper = await asyncio.create_subprocess_exec(
            *orphans.python("-I", str(CHILD_WRAPPER), str(self.log_path.absolute()), str(LOG_BYTES), str(GRACE_S)),
            *(str(self.spec.memory_bytes or default_memory()), "--"),
            *arguments(self.spec, self.socket),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(self.spec, os.environ) | {"VLLM_RPC_BASE_PATH": str(self.socket.parent)},
            start_new_session=True,
        )
        orphans.record(self._record, self._wrapper.pid)

    async def _become_ready(self) -> None:
        """Wait for the first successful health check. Raises Unavailable if the engine died or took too long."""
        wrapper, began, reported = self._wrapper, time.monotonic(), 0.0
        assert wrapper is not None
        while wrapper.returncode is None:
            if self.socket.exists() and await self.client.healthy():
                self.generation += 1
                self.client.pulse.heard()  # answers that the previous process owed do not count
                self._report(f"engine ready after {time.monotonic() - began:.0f} s")
                return
            waited = time.monotonic() - began
            if waited > READY_S:
                raise Unavailable(ENGINE_UNAVAILABLE, f"the engine was not ready after {READY_S:.0f} s")
            if waited - reported >= PROGRESS_S:
                reported = waited
                self._report(f"engine starting, {waited:.0f} s")
            await asyncio.sleep(POLL_S)
        tail = await self._in_thread(last_lines, self.log_path)
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine died at start (status {wrapper.returncode}): {tail}")

    async def _wait_for_end(self) -> str:
        """Return when the engine has died or was found hung, with the reason as a message."""
        assert self._wrapper is not None
        died = asyncio.create_task(self._wrapper.wait())
        try:
            misses, hung_s = 0, 0.0
            while misses < HEALTH_MISSES:
                done, _ = await asyncio.wait({died}, timeout=HEALTH_S)
                if done and self._wrapper.returncode == OVER_MEMORY:
                    return "the engine held more memory than GATEWAY_ENGINE_MEMORY_MIB allows and was ended"
                if done:
                    return "the engine died"
                hung_s = hung_s + HEALTH_S if self.hangs() else 0.0
                if hung_s >= HUNG_S:
                    return f"the engine's server answers, but its core has hung for {HUNG_S:.0f} s"
                misses = 0 if await self.client.healthy() else misses + 1
            return "the engine hangs"
        finally:
            died.cancel()

    async def _end(self) -> None:
        """Stop the engine by closing the wrapper's standard input; kill the session if that takes too long."""
        wrapper = self._wrapper
        if wrapper is None:
            return
        if wrapper.stdin is not None:
            wrapper.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S + 5):
                await wrapper.wait()
        await self._in_thread(orphans.reap, self._record)
        await wrapper.wait()
        self.socket.unlink(missing_ok=True)
        self._wrapper = None  # only now: a call that is cancelled before leaves the rest to the next one

    async def _supervise(self) -> None:
        """Run the engine, and start it again whenever it ends."""
        backoff = BACKOFF_S
        while True:
            started = time.monotonic()
            try:
                await self._become_ready()
                self._failure = None
                self._settled.set()
                self.on_ready()
                why = await self._wait_for_end()
                self._report(f"{why}; it is started again")
            except Unavailable as error:
                self._report(error.message)
                if not self._settled.is_set():
                    self._failure = error
                    self._settled.set()
            if time.monotonic() - started > BACKOFF_LIMIT_S:
                backoff = BACKOFF_S
            backoff = await self._restart(backoff)

    async def _restart(self, backoff: float) -> float:
        """Clean up after the dead engine, wait, and start another. Returns the next wait in seconds."""
        await self._end()
        while True:
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_LIMIT_S)
            try:
                await self._spawn()
            except OSError as error:  # no process or memory available at present
                self._report(f"the engine cannot be started: {error}")
            else:
                self.on_restart()
                return backoff


def socket_home(preferred: Path) -> Path:
    """Return `preferred` or, if its path is too long for sockets, a directory of the same user under the temporary one.

    It is the same for the same `preferred`, so that the next start finds the files of this one.
    """
    path = os.fsencode(preferred.absolute())
    if len(path) <= SOCKET_DIR_LIMIT:
        return preferred
    return Path(tempfile.gettempdir()) / f"lora-gateway-{os.getuid()}-{hashlib.sha256(path).hexdigest()[:12]}"


def make_private(directory: Path) -> None:
    """Make `directory` private to this user. Raises Unavailable if another user made it first, or it is a symbolic link."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Unavailable(ENGINE_UNAVAILABLE, f"{directory} belongs to somebody else")
    directory.chmod(0o700)


def last_lines(path: Path, count: int = LOG_TAIL, reach: int = 1 << 14) -> str:
    """Return the last `count` lines with an error within the last `reach` bytes. Blocking.

    If no line has an error, return the last ones that are not blank.
    """
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - reach))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    printed = [line.strip() for line in lines if line.strip()]
    errors = [line for line in printed if "Error" in line]
    return " | ".join((errors or printed)[-count:]) or "it said nothing"
