"""Screening worker and its children as processes that the gateway started: how they are started, told and ended."""

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
"""Seconds for the worker to say how a child ended, once the child's line broke off."""

TAKE_S: Final = 60.0
"""Seconds for the worker to fork a child, before it counts as hung: a fork takes milliseconds, on a machine that swaps
seconds."""

PASSED_ON: Final = frozenset({
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "NUMBA_CPU_NAME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SCREEN_PLAIN"),
})  # fmt: skip
"""Variables it gets of ours, where set: no key, no token, no URL."""


class WorkerProcess:
    """One worker process, as the gateway sees it. Safe for threads."""

    def __init__(self, module: str, settings: WorkerSettings) -> None:
        """Start it. Raises OSError."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self._lock = threading.Lock()
        self._in_flight = 0
        self._retired = False
        with ExitStack() as unstarted, ExitStack() as held:
            # a file, not a pipe: it takes settings of any length before the worker reads the first byte
            told = held.enter_context(os.fdopen(os.memfd_create("settings"), "w+b"))
            told.write(settings.encoded())
            told.seek(0)
            self.control, theirs = map(unstarted.enter_context, socket.socketpair())
            held.enter_context(theirs)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=told,
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
            unstarted.pop_all()

    @property
    def usable(self) -> bool:
        """Whether it runs and takes uploads."""
        return not self._retired and self.process.poll() is None

    def order(self, descriptors: Sequence[int]) -> None:
        """Pass an order on, and count it until `done`. Raises OSError, and then there is nothing to be done."""
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
        """An upload is over; the last one of a retired worker ends it."""
        with self._lock:
            self._in_flight -= 1
            last = self._retired and not self._in_flight
        if last:
            self.end()

    def retire(self) -> None:
        """Give it no more uploads: it hangs. For one of its uploads to call, before `done`."""
        self._retired = True
        event("sandbox_retired", logging.ERROR, pid=self.process.pid)

    def still_runs(self) -> bool:
        """Whether its process does; what is held of one that does not is given back."""
        if self.process.poll() is None:
            return True
        self.control.close()
        return False

    def end(self) -> None:
        """End it and whatever it is at."""
        self.process.kill()
        self.process.wait()
        self.control.close()


class ChildProcess:
    """One upload's child, as the gateway sees it."""

    def __init__(self, worker: WorkerProcess, status: socket.socket) -> None:
        """Wait until the worker has forked it. Raises Unavailable SCREENING_FAILED when there is none."""
        self._worker = worker
        self._status = status
        self._handle: int | None = None
        status.settimeout(TAKE_S)
        try:
            message, descriptors, _, _ = socket.recv_fds(status, STATUS.size, 1)
        except TimeoutError:
            worker.retire()
            raise failed(f"the screening process did not answer for {TAKE_S:g} s and is replaced") from None
        except OSError as error:
            raise failed(f"the screening process is gone: {error}") from error
        self._handle = descriptors[0] if descriptors else None
        what, number = _status(message)
        if what is not ChildStatus.STARTED:
            self.close()
            why = os.strerror(number) if what is ChildStatus.NOT_STARTED else "it ended, or had no descriptor free"
            raise failed(f"the screening process could not start a child: {why}; try again")

    def exit_code(self) -> int | None:
        """The code it ended with, negative for a signal; None when nobody says so for a while."""
        self._status.settimeout(LAST_STATUS_S)
        try:
            what, number = _status(self._status.recv(STATUS.size))
        except OSError:
            return None
        return number if what is ChildStatus.ENDED else None

    def kill(self) -> None:
        """End it, and nothing else. Without a handle its worker is retired, and takes it along in the end."""
        if self._handle is None:
            self._worker.retire()
        self.close()

    def close(self) -> None:
        """End it where that takes no more than its handle."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)


def failed(why: str) -> Unavailable:
    """The gateway's own failure, which is no fault of the upload."""
    return Unavailable(SCREENING_FAILED, why)


def _status(message: bytes) -> tuple[ChildStatus | None, int]:
    """A status, or (None, 0) for an end."""
    if len(message) < STATUS.size:
        return None, 0
    what, number = STATUS.unpack(message)
    return ChildStatus(what), number
