"""Client of the screening worker: strangers' tensors are read, measured and written anew in a process that is shut away.

One child per upload, forked from a process that is warm already (worker.py): its death by memory, time or a signal is one
refusal, and the next upload finds everything as before. What comes back is parsed as a stranger's words (answer.py).
Nothing that becomes of one upload ends the worker: a worker that no longer does its part is retired, which means that it
gets no more uploads and is ended after the last one it has.
"""

import io
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Final

from app.domain.artefact import Artefact
from app.domain.errors import SCREENING_KILLED, SCREENING_TIMEOUT, Refused, Unavailable, printable
from app.domain.lora import Received
from app.observe.log import event
from app.sandbox.answer import AnswerReader
from app.sandbox.process import ChildProcess, WorkerProcess, failed
from app.sandbox.protocol import Line, Order, OutOfFormError, WorkerSettings
from app.sandbox.sanitise import Measure, Steps

MODULE: Final = "app.sandbox.worker"
START_S: Final = 600.0
"""Seconds until it is ready: torch, kernels, and the reference's digest, a second per GB."""

ORDER_S: Final = 5.0
"""Seconds to pass an order on, which is one byte: a worker that takes so long hangs."""

READ_S: Final = 60.0
"""Seconds for reading and writing an upload's gigabytes, beside two screenings."""

GRACE_S: Final = 5.0
"""Seconds after its own alarm until a child is ended from outside."""

TIMED_OUT: Final = frozenset({-14, -24})
"""Exit statuses of SIGALRM and SIGXCPU."""


class Sandbox:
    """A `Sanitise` that runs elsewhere. Safe for threads; blocking.

    reference: its directory. memory_bytes: what one upload may take beyond the reference. wall_seconds: by the clock, None:
    two screenings and some time to read.
    """

    def __init__(
        self,
        measure: Measure,
        reference: Path,
        memory_bytes: int,
        *,
        wall_seconds: float | None = None,
        module: str = MODULE,
    ) -> None:
        self._measure = measure
        self._module = module
        self._wall_s = wall_seconds or 2 * measure.screen_seconds + READ_S
        self._settings = _settings(measure, reference, memory_bytes, self._wall_s)
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._ready = False
        self._closed = False
        self._old: list[WorkerProcess] = []
        """Retired ones that may still have uploads."""

    def start(self) -> None:
        """Start it, if it does not run; does not wait until it is warm. Raises Unavailable SCREENING_FAILED."""
        with self._lock:
            self._spawn()

    def warm(self) -> None:
        """Wait until it can take an upload. Raises Unavailable SCREENING_FAILED when it cannot be started."""
        with self._lock:
            self._awake()

    def close(self) -> None:
        """End it and whatever it is at."""
        self._closed = True
        if (worker := self._worker) is not None:
            worker.process.kill()  # before the lock: somebody may hold it, waiting for it to be warm
        with self._lock:
            for one in (*self._old, *([self._worker] if self._worker else [])):
                one.end()
            self._worker, self._old = None, []

    def __call__(self, config: bytes, weights: io.BufferedReader, received: Received, steps: Steps) -> Artefact | None:
        """See `Sanitise`. Also raises Refused SCREENING_KILLED or SCREENING_TIMEOUT when the child came to an end."""
        with ExitStack() as held:
            try:
                ours, line = map(held.enter_context, socket.socketpair())
                heard, status = map(held.enter_context, socket.socketpair())
            except OSError as error:
                raise failed(f"the gateway has no descriptor free: {error}; try again") from error
            worker = self._submit([status.fileno(), line.fileno(), weights.fileno()])
            held.callback(worker.done)
            status.close()
            line.close()
            child = ChildProcess(worker, heard)
            held.callback(child.close)
            return self._follow(child, Order(config, received), ours, steps)

    def _follow(self, child: ChildProcess, order: Order, ours: socket.socket, steps: Steps) -> Artefact | None:
        """Hand the child its order and read what it answers."""
        line = Line(ours, time.monotonic() + self._wall_s + GRACE_S)
        try:
            order.send(line)
            return AnswerReader(self._measure, order.received, steps).read(line)
        except EOFError:
            raise self._ended(child) from None
        except TimeoutError:
            child.kill()
            raise Refused(SCREENING_TIMEOUT, f"it was ended after {self._wall_s:g} s") from None
        except OutOfFormError as error:
            child.kill()
            event("sandbox_broke_form", logging.ERROR, why=printable(str(error)))
            raise Refused(SCREENING_KILLED, "what came back from measuring it was not in form") from error

    # ---- the process -------------------------------------------------------------------------------------------------

    def _submit(self, descriptors: Sequence[int]) -> WorkerProcess:
        """Pass an order to a worker that takes it. Raises Unavailable SCREENING_FAILED."""
        with self._lock:
            for last in (False, True):
                worker = self._awake()
                try:
                    worker.order(descriptors)
                except OSError as error:
                    gone = isinstance(error, ConnectionError) or not worker.usable
                    if last or not gone:  # an order that cannot be passed on says nothing of the worker
                        raise failed(f"the order could not be passed on: {error}; try again") from error
                    if isinstance(error, ConnectionError):
                        worker.end()  # it died since; one new start
                else:
                    return worker
        raise AssertionError

    def _awake(self) -> WorkerProcess:
        worker = self._spawn()
        if not self._ready:
            try:
                said, _ = Line(worker.control, time.monotonic() + START_S).receive(0)
            except (OSError, EOFError, OutOfFormError) as error:
                said = {"failed": str(error) or "it ended at once"}
            if not said.get("ready"):
                worker.end()
                raise failed(f"the screening process does not start: {said.get('failed')}")
            self._ready = True
            worker.control.settimeout(ORDER_S)
            level = logging.WARNING if said["network"] else logging.INFO
            event(
                "sandbox", level, network="reachable: this system lets no one leave it" if said["network"] else "none"
            )
        return worker

    def _spawn(self) -> WorkerProcess:
        if self._closed:
            raise failed("the gateway is stopping")
        if self._worker is None or not self._worker.usable:
            self._old = [one for one in (*self._old, self._worker) if one is not None and one.still_runs()]
            self._worker, self._ready = None, False
            try:
                self._worker = WorkerProcess(self._module, self._settings)
            except OSError as error:
                raise failed(f"the screening process does not start: {error}") from error
        return self._worker

    def _ended(self, child: ChildProcess) -> Refused | Unavailable:
        """Its line broke off: in words."""
        code = child.exit_code()
        event("sandbox_child_ended", logging.WARNING, status=code)
        self._measure.reference.check_unchanged()  # cut short under its eyes, that would be the operator's
        if code in TIMED_OUT:
            return Refused(SCREENING_TIMEOUT, f"it took longer than {self._wall_s:g} s")
        if code is None:
            return failed("the screening process was ended from outside")
        if code == os.EX_OSERR:
            return failed("the process that was to measure it could not be set up; try again")
        return Refused(SCREENING_KILLED, f"the process that measured it ended with status {code}")


def _settings(measure: Measure, reference: Path, memory_bytes: int, wall_seconds: float) -> WorkerSettings:
    target, limits = measure.target, measure.limits
    return WorkerSettings(
        model=target.name,
        dtype=target.dtype.value,
        max_rank=target.max_rank,
        max_scaling=limits.max_scaling,
        base_names=None if limits.base_names is None else sorted(limits.base_names),
        max_config_bytes=limits.max_config_bytes,
        reference=str(reference.resolve()),
        reference_digest=measure.reference.digest.hex,
        policy=asdict(measure.policy),
        screen_seconds=measure.screen_seconds,
        memory_bytes=memory_bytes,
        wall_seconds=wall_seconds,
    )
