"""Process control of the screening worker and its children, in the gateway: start, send orders, kill."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from app.domain.errors import SCREENING_FAILED, Unavailable
from app.observe.log import event
from app.sandbox.protocol import ORDER, STATUS, ChildStatus, WorkerSettings

LAST_STATUS_S: Final = 5.0
"""Most seconds for the worker to report how a child ended, after the child's connection has ended."""

TAKE_S: Final = 60.0
"""Seconds for the worker to fork a child before it counts as hung: a fork takes milliseconds, on a swapping machine
seconds."""

PASSED_ON: Final = frozenset({
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "NUMBA_CPU_NAME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SCREEN_PLAIN"),
})  # fmt: skip
"""Environment variables passed on to the worker, if set: no key, no token, no URL."""


class WorkerProcess:
    """One worker process, as the gateway controls it. Thread-safe."""

    def __init__(self, module: str, settings: WorkerSettings) -> None:
        """Start the process. Raises OSError."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self._lock = threading.Lock()
        self._in_flight = 0
        self._retired = False
        with ExitStack() as unstarted, ExitStack() as held:
            # a file, not a pipe: it holds settings of any length before the worker reads the first byte
            settings_file = held.enter_context(os.fdopen(os.memfd_create("settings"), "w+b"))
            settings_file.write(settings.encoded())
            settings_file.seek(0)
            self.control, theirs = map(unstarted.enter_context, socket.socketpair())
            held.enter_context(theirs)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=settings_file,
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
            unstarted.pop_all()

    @property
    def usable(self) -> bool:
        """True if the worker runs and accepts uploads."""
        return not self._retired and self.process.poll() is None

    def order(self, descriptors: Sequence[int]) -> None:
        """Send an order, and count it until `done`. Raises OSError; the order then does not count, and `done` must not be
        called."""
        with self._lock:
            self._in_flight += 1
        try:
            socket.send_fds(self.control, [ORDER], descriptors)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self.retire()
            self.done()
            raise

    def done(self) -> None:
        """Count an upload as finished; the last one of a retired worker ends the worker."""
        with self._lock:
            self._in_flight -= 1
            last = self._retired and not self._in_flight
        if last:
            self.end()

    def retire(self) -> None:
        """Accept no more uploads, because the worker hangs. Called by one of its uploads, before `done`."""
        self._retired = True
        event("sandbox_retired", logging.ERROR, pid=self.process.pid)

    def still_runs(self) -> bool:
        """Return whether the process runs; if it does not, close its control socket."""
        if self.process.poll() is None:
            return True
        self.control.close()
        return False

    def end(self) -> None:
        """Kill the worker with all its uploads."""
        self.process.kill()
        self.process.wait()
        self.control.close()


class ChildProcess:
    """One upload's child process, as the gateway controls it."""

    def __init__(self, worker: WorkerProcess, status: socket.socket) -> None:
        """Wait until the worker has forked the child. Raises Unavailable SCREENING_FAILED if it has not."""
        self._worker = worker
        self._status = status
        self._pidfd: int | None = None
        status.settimeout(TAKE_S)
        try:
            message, descriptors, _, _ = socket.recv_fds(status, STATUS.size, 1)
        except TimeoutError:
            worker.retire()
            raise failed(f"the screening process did not answer for {TAKE_S:g} s and is replaced") from None
        except OSError as error:
            raise failed(f"the screening process is gone: {error}") from error
        self._pidfd = descriptors[0] if descriptors else None
        kind, number = _status(message)
        if kind is not ChildStatus.STARTED:
            self.close()
            why = os.strerror(number) if kind is ChildStatus.NOT_STARTED else "it ended, or had no descriptor free"
            raise failed(f"the screening process could not start a child: {why}; try again")

    def exit_code(self) -> int | None:
        """Return the child's exit code, negative for a signal; None if the worker does not report it in time."""
        self._status.settimeout(LAST_STATUS_S)
        try:
            kind, number = _status(self._status.recv(STATUS.size))
        except OSError:
            return None
        return number if kind is ChildStatus.ENDED else None

    def kill(self) -> None:
        """Kill the child only. Without a pidfd the worker is retired instead, and its end kills the child."""
        if self._pidfd is None:
            self._worker.retire()
        self.close()

    def close(self) -> None:
        """Kill the child if there is a pidfd, and close the pidfd."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def failed(why: str) -> Unavailable:
    """Return the error for a failure of the gateway itself, which is not the upload's fault."""
    return Unavailable(SCREENING_FAILED, why)


def _status(message: bytes) -> tuple[ChildStatus | None, int]:
    """Parse a status message; return (None, 0) for the end of the stream."""
    if len(message) < STATUS.size:
        return None, 0
    kind, number = STATUS.unpack(message)
    return ChildStatus(kind), number
