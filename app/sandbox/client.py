"""Client of the screening worker: untrusted tensors are read, measured and rewritten in a sandboxed process.

One child per upload, forked from a process that is already warm (worker.py): if the child dies by memory, time or a
signal, that upload is refused and the next one is not affected. The child's answer is parsed as untrusted (answer.py).
The failure of one upload never ends the worker: a worker that stops responding is retired, which means that it gets no
more uploads and is ended after its last one.
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
from app.domain.errors import SCREENING_KILLED, SCREENING_TIMEOUT, Refused, Unavailable
from app.domain.lora import Received
from app.domain.policy_override import NO_OVERRIDE, PolicyOverride
from app.domain.printable import printable
from app.observe.log import event
from app.sandbox.answer import AnswerReader
from app.sandbox.process import ChildProcess, WorkerProcess, failed
from app.sandbox.protocol import Line, Order, OutOfFormError, WorkerSettings
from app.sandbox.sanitise import Measure, Steps

MODULE: Final = "app.sandbox.worker"
START_S: Final = 600.0
"""Most seconds until the worker is ready: torch, kernels, and the reference's digest, a second per GB."""

ORDER_S: Final = 5.0
"""Most seconds to send an order, which is one byte: a worker that takes longer hangs."""

READ_S: Final = 60.0
"""Seconds allowed for reading and writing an upload's gigabytes, in addition to two screenings."""

GRACE_S: Final = 5.0
"""Seconds after a child's own alarm until the gateway kills it."""

TIMED_OUT: Final = frozenset({-14, -24})
"""Exit statuses of SIGALRM and SIGXCPU."""


class Sandbox:
    """A `Sanitise` that runs in the worker process. Thread-safe; blocking.

    reference: its directory. memory_bytes: most memory of one upload beyond the reference. wall_seconds: most wall-clock
    time of one upload, None: two screenings and READ_S.
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
        self._replaced: list[WorkerProcess] = []
        """Replaced workers that may still have uploads."""

    def start(self) -> None:
        """Start the worker if it is not running, without waiting until it is warm. Raises Unavailable SCREENING_FAILED."""
        with self._lock:
            self._spawn()

    def warm(self) -> None:
        """Wait until the worker can take an upload. Raises Unavailable SCREENING_FAILED if it cannot be started."""
        with self._lock:
            self._ready_worker()

    def close(self) -> None:
        """Kill the workers with all their uploads."""
        self._closed = True
        if (worker := self._worker) is not None:
            worker.process.kill()  # before the lock: a thread may hold it while it waits for the worker to be warm
        with self._lock:
            for one in (*self._replaced, *([self._worker] if self._worker else [])):
                one.end()
            self._worker, self._replaced = None, []

    def __call__(
        self,
        config: bytes,
        weights: io.BufferedReader,
        received: Received,
        steps: Steps,
        *,
        rung: int = 0,
        complete: bool = False,
        override: PolicyOverride = NO_OVERRIDE,
    ) -> Artefact | None:
        """See `Sanitise`. Also raises Refused SCREENING_KILLED or SCREENING_TIMEOUT if the child is killed or times out."""
        with ExitStack() as held:
            try:
                ours, line = map(held.enter_context, socket.socketpair())
                status, child_status = map(held.enter_context, socket.socketpair())
            except OSError as error:
                raise failed(f"the gateway has no descriptor free: {error}; try again") from error
            worker = self._submit([child_status.fileno(), line.fileno(), weights.fileno()])
            held.callback(worker.done)
            child_status.close()
            line.close()
            child = ChildProcess(worker, status)
            held.callback(child.close)
            return self._follow(child, Order(config, received, rung, complete, override), ours, steps)

    def _follow(self, child: ChildProcess, order: Order, ours: socket.socket, steps: Steps) -> Artefact | None:
        """Send the child its order and read its answer."""
        line = Line(ours, time.monotonic() + self._wall_s + GRACE_S)
        try:
            order.send(line)
            measure = self._measure.under(order.override).at(order.rung)
            return AnswerReader(measure, order.received, steps).read(line)
        except EOFError:
            raise self._end_error(child) from None
        except TimeoutError:
            child.kill()
            raise Refused(SCREENING_TIMEOUT, f"it was ended after {self._wall_s:g} s") from None
        except OutOfFormError as error:
            child.kill()
            event("sandbox_broke_form", logging.ERROR, why=printable(str(error)))
            raise Refused(SCREENING_KILLED, "what came back from measuring it was not in form") from error

    # ---- the process -------------------------------------------------------------------------------------------------

    def _submit(self, descriptors: Sequence[int]) -> WorkerProcess:
        """Send an order to a running worker and return that worker. Raises Unavailable SCREENING_FAILED."""
        with self._lock:
            for last in (False, True):
                worker = self._ready_worker()
                try:
                    worker.order(descriptors)
                except OSError as error:
                    worker_failed = isinstance(error, ConnectionError) or not worker.usable
                    if last or not worker_failed:  # a failed send alone does not mean that the worker is broken
                        raise failed(f"the order could not be passed on: {error}; try again") from error
                    if isinstance(error, ConnectionError):
                        worker.end()  # it has died meanwhile: start a new one, once
                else:
                    return worker
        raise AssertionError

    def _ready_worker(self) -> WorkerProcess:
        worker = self._spawn()
        if not self._ready:
            try:
                reply, _ = Line(worker.control, time.monotonic() + START_S).receive(0)
            except (OSError, EOFError, OutOfFormError) as error:
                reply = {"failed": str(error) or "it ended at once"}
            if not reply.get("ready"):
                worker.end()
                raise failed(f"the screening process does not start: {reply.get('failed')}")
            self._ready = True
            worker.control.settimeout(ORDER_S)
            level = logging.WARNING if reply["network"] else logging.INFO
            event(
                "sandbox", level, network="reachable: this system lets no one leave it" if reply["network"] else "none"
            )
        return worker

    def _spawn(self) -> WorkerProcess:
        if self._closed:
            raise failed("the gateway is stopping")
        if self._worker is None or not self._worker.usable:
            self._replaced = [one for one in (*self._replaced, self._worker) if one is not None and one.still_runs()]
            self._worker, self._ready = None, False
            try:
                self._worker = WorkerProcess(self._module, self._settings)
            except OSError as error:
                raise failed(f"the screening process does not start: {error}") from error
        return self._worker

    def _end_error(self, child: ChildProcess) -> Refused | Unavailable:
        """Return the error for a child whose connection ended early."""
        code = child.exit_code()
        event("sandbox_child_ended", logging.WARNING, status=code)
        self._measure.reference.check_unchanged()  # a reference truncated meanwhile is the operator's fault
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
        rungs=[asdict(policy) for policy in measure.rungs],
        complete=measure.complete,
    )
