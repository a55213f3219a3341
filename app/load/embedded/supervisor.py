"""A vLLM API server of our own: started, watched, started again, and never left behind.

Between us and vLLM stands `child_wrapper.py`, which ends the whole family when we go away, however we go. Should even that
be killed, the next start finds what is left by the session recorded beside the socket.
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
"""Bytes of the directory's path: a Unix socket's may have 107, and vLLM names its own by a slash and 36 characters."""

LOG_BYTES: Final = 16 << 20
"""Bytes of one engine log file; two older ones are kept."""

LOG_TAIL: Final = 5
"""Last lines of the engine's log that are quoted when it died at start."""

READY_S: Final = 900.0
"""Seconds to become ready before it is killed and tried again: a 70B checkpoint from a slow disk."""

POLL_S: Final = 0.5
"""Seconds between looks at an engine that is starting."""

PROGRESS_S: Final = 5.0
"""Seconds between words of progress while it is starting."""

HEALTH_S: Final = 5.0
HEALTH_MISSES: Final = 12
"""Seconds between health checks, and how many may fail in a row before a hung engine is killed."""

HUNG_S: Final = 60.0
"""Seconds that its core may be known to hang (hung.py) before it is killed, counted by those looks. As long again as it
is silent before it is suspected: one that wakes by itself still gives the answers it owes, and keeps its adapters."""

BACKOFF_S: Final = 1.0
BACKOFF_LIMIT_S: Final = 60.0
"""Seconds before a dead engine is started again: doubled each time up to the limit, reset once it was up that long."""


class EmbeddedEngine:
    """Supervises one vLLM. `client` speaks to it; `url` is where another HttpEngine may.

    spec: what to serve and how. socket_dir: private directory (made 0700, old sockets removed) for sockets and the
    session record, see `socket_home`. log_path: where its output goes. on_ready: called each time it became ready, so
    that adapters are loaded again. on_restart: called each time it is started again. hangs: whether its core is known to
    hang. say: hears about progress, one line each.
    """

    def __init__(
        self,
        spec: EngineSpec,
        socket_dir: Path,
        log_path: Path,
        *,
        on_ready: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
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
        self._say = say
        self._in_thread = Pool("engine", 1)
        self._record = self.socket.with_name(SESSION)
        self._leash: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._failure: Unavailable | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the leash, the leader of the engine's session; None while nothing runs."""
        return self._leash.pid if self._leash is not None and self._leash.returncode is None else None

    async def start(self) -> None:
        """Start the engine and the watch over it; does not wait for it to be ready.

        Raises Unavailable ENGINE_UNAVAILABLE when it cannot be started here at all.
        """
        if missing := missing_library():
            raise Unavailable(ENGINE_UNAVAILABLE, missing)
        make_private(self.socket.parent)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if await self._in_thread(orphans.reap, self._record):
            self._say("ended an engine that an earlier gateway left behind")
        await self._spawn()
        self._watch = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def ready(self) -> None:
        """Wait until it is ready for the first time. Raises Unavailable ENGINE_UNAVAILABLE when that start failed.

        After a failed first start the supervisor goes on trying; call `stop` to give up.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """End the engine and everything it started. Takes up to the grace period."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        await self._end()
        await self.client.close()

    # ---- one life ------------------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        for stale in self.socket.parent.iterdir():
            if stale.is_socket():
                stale.unlink(missing_ok=True)
        self._leash = await asyncio.create_subprocess_exec(
            *orphans.python("-I", str(CHILD_WRAPPER), str(self.log_path.absolute()), str(LOG_BYTES), str(GRACE_S)),
            *(str(self.spec.memory_bytes or default_memory()), "--"),
            *arguments(self.spec, self.socket),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(self.spec, os.environ) | {"VLLM_RPC_BASE_PATH": str(self.socket.parent)},
            start_new_session=True,
        )
        orphans.record(self._record, self._leash.pid)

    async def _become_ready(self) -> None:
        """Wait for the first answer. Raises Unavailable when the engine died or took too long."""
        leash, began, said = self._leash, time.monotonic(), 0.0
        assert leash is not None
        while leash.returncode is None:
            if self.socket.exists() and await self.client.healthy():
                self.generation += 1
                self.client.pulse.heard()  # what the one before owed is not its debt
                self._say(f"engine ready after {time.monotonic() - began:.0f} s")
                return
            waited = time.monotonic() - began
            if waited > READY_S:
                raise Unavailable(ENGINE_UNAVAILABLE, f"the engine was not ready after {READY_S:.0f} s")
            if waited - said >= PROGRESS_S:
                said = waited
                self._say(f"engine starting, {waited:.0f} s")
            await asyncio.sleep(POLL_S)
        tail = await self._in_thread(last_lines, self.log_path)
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine died at start (status {leash.returncode}): {tail}")

    async def _live(self) -> str:
        """Return when the engine died, or was found hung: which of them, in words."""
        assert self._leash is not None
        died = asyncio.create_task(self._leash.wait())
        try:
            misses, hung_s = 0, 0.0
            while misses < HEALTH_MISSES:
                done, _ = await asyncio.wait({died}, timeout=HEALTH_S)
                if done and self._leash.returncode == OVER_MEMORY:
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
        """Close the leash's standard input: it ends the family. Kill the session if that takes too long."""
        leash = self._leash
        if leash is None:
            return
        if leash.stdin is not None:
            leash.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S + 5):
                await leash.wait()
        await self._in_thread(orphans.reap, self._record)
        await leash.wait()
        self.socket.unlink(missing_ok=True)
        self._leash = None  # only now: whoever is cancelled on the way leaves the rest to the next caller

    async def _supervise(self) -> None:
        """One life after the other."""
        backoff = BACKOFF_S
        while True:
            born = time.monotonic()
            try:
                await self._become_ready()
                self._failure = None
                self._settled.set()
                self.on_ready()
                why = await self._live()
                self._say(f"{why}; it is started again")
            except Unavailable as error:
                self._say(error.message)
                if not self._settled.is_set():
                    self._failure = error
                    self._settled.set()
            if time.monotonic() - born > BACKOFF_LIMIT_S:
                backoff = BACKOFF_S
            backoff = await self._again(backoff)

    async def _again(self, backoff: float) -> float:
        """Clear away the dead engine, wait, start another. Returns the next wait, seconds."""
        await self._end()
        while True:
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_LIMIT_S)
            try:
                await self._spawn()
            except OSError as error:  # no process or memory to be had just now
                self._say(f"the engine cannot be started: {error}")
            else:
                self.on_restart()
                return backoff


def socket_home(preferred: Path) -> Path:
    """`preferred`, or where its path is too long for sockets, a directory of the same owner under the temporary one.

    The same for the same `preferred`, so that the next start finds what this one left.
    """
    path = os.fsencode(preferred.absolute())
    if len(path) <= SOCKET_DIR_LIMIT:
        return preferred
    return Path(tempfile.gettempdir()) / f"lora-gateway-{os.getuid()}-{hashlib.sha256(path).hexdigest()[:12]}"


def make_private(directory: Path) -> None:
    """Make `directory` ours alone. Raises Unavailable when somebody else made it first."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Unavailable(ENGINE_UNAVAILABLE, f"{directory} belongs to somebody else")
    directory.chmod(0o700)


def last_lines(path: Path, count: int = LOG_TAIL, reach: int = 1 << 14) -> str:
    """The last `count` lines that say something, out of the last `reach` bytes. Blocking."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - reach))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if "Error" in line]
    return " | ".join((errors or said)[-count:]) or "it said nothing"
