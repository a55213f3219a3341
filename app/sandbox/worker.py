"""Screening worker: the sandboxed process that reads untrusted tensors, `python -m app.sandbox.worker CONTROL`.

The gateway starts it (process.py). It opens the reference and compiles the kernels once, gives up the network, and then,
for each upload, forks a child that limits its own memory, time and files, reads its order, does the work, writes the
result to its own socket, and ends. The parent process here reads nothing of an upload, not even its configuration: an
order is one byte with descriptors, a child's end is reported as a number, and a failed order as one status.
"""

import ctypes
import errno
import gc
import math
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from app.domain.digest import Digest
from app.domain.errors import GatewayError, Stage
from app.domain.lora import ServingDtype, TargetModel
from app.domain.manifest import verdict_json
from app.domain.out_of_memory import out_of_memory
from app.domain.policy import policy_from
from app.domain.verdict import Verdict
from app.sandbox.protocol import ORDER, ORDER_DESCRIPTORS, STATUS, ChildStatus, Line, Order, WorkerSettings
from app.sandbox.sanitise import Measure, sanitise
from app.screen.compiled.warm import warm
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits

OPEN_FILES: Final = 64
"""Descriptors a child may open beyond those it inherits: two for each file of the reference, which stays mapped."""

NICENESS: Final = 10
"""Niceness: under contention a ninth of the share of a process of niceness 0 in the same session; otherwise no limit."""

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
"""Constants of the Linux API."""


class Answer:
    """Sender of a child's answer; implements Steps by sending a frame for each."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """See Steps."""
        self.send({"took": stage.value, "seconds": seconds, "outcome": outcome})

    def validated(self) -> None:
        """See Steps."""
        self.send({"validated": True})

    def screened(self, verdict: Verdict) -> None:
        """See Steps."""
        self.send({"screened": verdict_json(verdict)})

    def send(self, fields: Mapping[str, Any], payload: bytes = b"") -> None:
        """Send one frame."""
        self._line.send(fields, payload)


def work(measure: Measure, order: Order, weights_fd: int, answer: Answer) -> None:
    """Sanitise one upload and send the result. Runs in the child."""
    try:
        with os.fdopen(weights_fd, "rb") as weights:
            upload = (order.config, weights, order.received)
            tenants = measure.under(order.override)
            made = sanitise(tenants, *upload, answer, rung=order.rung, complete=order.complete)
    except GatewayError as error:
        told = {"message": error.message, "param": error.param, "remedy": error.remedy}
        answer.send({"refused": error.code.name, **told, "details": [asdict(fault) for fault in error.details]})
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        answer.send({"died": "it needed more memory than one upload may"})
    else:
        if made is not None:
            answer.send({"config": True}, made.config)
            answer.send({"weights": True}, made.weights)
        answer.send({"done": True})


def give_way() -> None:
    """Lower this process's CPU priority below the gateway's and the engine's.

    It stays in the gateway's session. A session of its own with a lower autogroup priority was starved on Linux 6.18
    beside an engine that kept all processors busy: no upload ended.
    """
    os.nice(NICENESS)


def shut_away(worker: int, memory_bytes: int, seconds: float) -> None:
    """Apply the limits of one child. worker: process id of its parent. memory_bytes: beyond its usage at the fork.
    seconds: wall-clock time, and CPU time per core. Raises OSError if the worker has ended."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if (
        os.getppid() != worker
    ):  # it was killed before that line: no signal comes any more, and nobody would end this child
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    point_at_nothing(sys.stderr.fileno())
    for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    whole = math.ceil(seconds)
    signal.alarm(whole)
    cores = len(os.sched_getaffinity(0))
    limits = {
        resource.RLIMIT_DATA: data_bytes() + memory_bytes,
        resource.RLIMIT_CPU: whole * cores,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: max(map(int, os.listdir("/proc/self/fd"))) + 1 + OPEN_FILES,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write("1000")  # if memory runs out all the same, the kernel kills this process first


def point_at_nothing(number: int) -> None:
    """Redirect descriptor `number` to /dev/null."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, number)
    os.close(nothing)


def data_bytes() -> int:
    """Return the bytes that RLIMIT_DATA counts for this process: private writable mappings, including V if it is mapped."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def no_network() -> bool:
    """Enter an empty network namespace; return False if this process may not."""
    libc = ctypes.CDLL(None)
    return any(libc.unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def measure_of(settings: WorkerSettings) -> Measure:
    """Build the gateway's Measure from its settings."""
    names = settings.base_names
    reference = open_reference(Path(settings.reference), Digest(settings.reference_digest))
    return Measure(
        target=TargetModel(settings.model, reference.modules, ServingDtype(settings.dtype), settings.max_rank),
        limits=ValidateLimits(
            settings.max_scaling, None if names is None else frozenset(names), settings.max_config_bytes
        ),
        reference=reference,
        policy=policy_from(settings.policy),
        screen_seconds=settings.screen_seconds,
        rungs=tuple(map(policy_from, settings.rungs)),
        complete=settings.complete,
    )


class Forker:
    """Parent process: forks a child for each order, and reports how each child ended."""

    def __init__(self, control: socket.socket, measure: Measure, settings: WorkerSettings) -> None:
        self._control = control
        self._measure = measure
        self._settings = settings
        self._children: dict[int, socket.socket] = {}
        self._woken, self._waker = os.pipe()

    def run(self) -> None:
        """Serve orders until the gateway closes the control socket."""
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        Line(self._control).send({"ready": True, "network": not no_network()})
        waiting = select.poll()  # poll, as in the gateway, not select: it accepts any descriptor number
        waiting.register(self._control, select.POLLIN)
        waiting.register(self._woken, select.POLLIN)
        while True:
            ready = {number for number, _ in waiting.poll()}
            if self._woken in ready:
                os.read(self._woken, 1 << 10)
                self._reap()
            if self._control.fileno() in ready and not self._take_next():
                return  # the children are killed with this process

    def _take_next(self) -> bool:
        """Carry out the next order, or report its failure; return False if the gateway has closed the control socket.

        Of the order's descriptors only the status socket of a running child stays open.
        """
        try:
            message, descriptors, flags, _ = socket.recv_fds(self._control, len(ORDER), ORDER_DESCRIPTORS)
        except ConnectionError:
            return False
        if descriptors:  # otherwise the gateway sees the end of both sockets
            status = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptors[0])
            try:
                pid = self._fork(status, descriptors[1:], truncated=bool(flags & socket.MSG_CTRUNC))
            except OSError as error:
                _report(status, ChildStatus.NOT_STARTED, error.errno or 0)
                status.close()
            else:
                self._children[pid] = status
                _announce(status, pid)
            finally:
                for number in descriptors[1:]:
                    os.close(number)
        return bool(message)

    def _fork(self, status: socket.socket, descriptors: list[int], *, truncated: bool) -> int:
        """Fork a child for one order and return its process id. Raises OSError."""
        if truncated or 1 + len(descriptors) < ORDER_DESCRIPTORS:  # the kernel had no free descriptor
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        worker = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._child(worker, status, *descriptors)
        return pid

    def _reap(self) -> None:
        """Report how each ended child ended, on a socket that the child itself had no access to."""
        for pid in list(self._children):
            found, ended = os.waitpid(pid, os.WNOHANG)
            if found == pid:
                with self._children.pop(pid) as status:
                    _report(status, ChildStatus.ENDED, os.waitstatus_to_exitcode(ended))

    def _child(self, worker: int, status: socket.socket, line_fd: int, weights_fd: int) -> NoReturn:
        """Process one upload, after closing other uploads' descriptors. Exits with EX_OSERR on failure before it."""
        code = os.EX_OSERR
        try:
            signal.set_wakeup_fd(-1)
            for own in (self._control, status, *self._children.values()):
                own.close()
            os.close(self._woken)
            os.close(self._waker)
            shut_away(worker, self._settings.memory_bytes, self._settings.wall_seconds)
            line = Line(socket.socket(fileno=line_fd))
            order = Order.receive(line, self._settings.memory_bytes)
            code = 1
            work(self._measure, order, weights_fd, Answer(line))
            code = 0
        finally:
            os._exit(code)


def _report(status: socket.socket, kind: ChildStatus, number: int) -> None:
    with suppress(OSError):  # the gateway has closed its end
        status.sendall(STATUS.pack(kind, number))


def _announce(status: socket.socket, pid: int) -> None:
    """Report a started child, with its pidfd, so that the gateway can kill it even if this process hangs."""
    try:
        pidfd = os.pidfd_open(pid)
        try:
            socket.send_fds(status, [STATUS.pack(ChildStatus.STARTED, pid)], [pidfd])
        finally:
            os.close(pidfd)
    except OSError:  # no pidfd support, or no free descriptor
        _report(status, ChildStatus.STARTED, pid)


def main() -> None:
    """Run the worker: settings on standard input, the control socket's descriptor number as first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway handles a terminal's Ctrl-C
    settings = WorkerSettings.decoded(sys.stdin.buffer.read())
    point_at_nothing(sys.stdin.fileno())
    try:
        measure = measure_of(settings)
    except GatewayError as error:
        Line(control).send({"failed": error.message})
        return
    warm()
    gc.collect()  # later collections skip the objects that exist now: see gc.freeze, and docs/performance.md
    gc.freeze()
    give_way()
    Forker(control, measure, settings).run()


if __name__ == "__main__":
    main()
