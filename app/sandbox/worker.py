"""Screening worker: the process that strangers' tensors are read in, `python -m app.sandbox.worker CONTROL`.

The gateway starts it (process.py). It opens the reference and compiles the kernels once, gives up the network, and then,
for each upload, forks a child that gives up memory, time and files beyond its share, reads its order, does the work,
writes what it found to its own socket, and ends. The parent process here reads nothing of an upload, not even its
configuration: an order is a byte with descriptors, a child's death is a number to report, and an order that cannot be
carried out is one status.
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
"""Descriptors a child may have beyond those it has at birth: two for each file of the reference, which stays mapped."""

NICENESS: Final = 10
"""A ninth of the share of a process that is not nice, where there is too little for all; otherwise as much as it likes."""

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
"""Linux's own numbers."""


class Answer:
    """Sender of a child's answer, and its Steps: each becomes a frame."""

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
        """One frame."""
        self._line.send(fields, payload)


def work(measure: Measure, order: Order, weights_fd: int, answer: Answer) -> None:
    """One upload, in the child."""
    try:
        with os.fdopen(weights_fd, "rb") as weights:
            made = sanitise(measure, order.config, weights, order.received, answer)
    except GatewayError as error:
        answer.send({"refused": error.code.name, "message": error.message, "param": error.param})
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
    """Leave the processors to chat where both want them: the engine's, the gateway's own.

    Linux shares processors between sessions first (autogroups), whatever their processes say of themselves, so this one
    gets a session of its own with a small share; where it has none of those, as in a container, niceness counts.
    """
    with suppress(OSError):  # it leads one already
        os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")
    os.nice(NICENESS)


def shut_away(memory_bytes: int, seconds: float) -> None:
    """Limits of one child. memory_bytes: beyond what it has at birth; seconds: by the clock, and on each core."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
        adjust.write("1000")  # where memory runs out all the same, this goes first


def point_at_nothing(number: int) -> None:
    """Make descriptor `number` /dev/null."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, number)
    os.close(nothing)


def data_bytes() -> int:
    """Bytes that RLIMIT_DATA counts of this process: mapped private and writable, V among it where it is mapped."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def no_network() -> bool:
    """Leave for a network name space with nothing in it; False where this process may not."""
    libc = ctypes.CDLL(None)
    return any(libc.unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def measure_of(settings: WorkerSettings) -> Measure:
    """The same as the gateway's, from its settings."""
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
    )


class Forker:
    """Parent of the children: forks one for each order, and says of each how it ended."""

    def __init__(self, control: socket.socket, measure: Measure, settings: WorkerSettings) -> None:
        self._control = control
        self._measure = measure
        self._settings = settings
        self._children: dict[int, socket.socket] = {}
        self._woken, self._waker = os.pipe()

    def run(self) -> None:
        """Serve until the gateway is gone."""
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        Line(self._control).send({"ready": True, "network": not no_network()})
        waiting = select.poll()  # as in the gateway: no file number is too high for it
        waiting.register(self._control, select.POLLIN)
        waiting.register(self._woken, select.POLLIN)
        while True:
            ready = {number for number, _ in waiting.poll()}
            if self._woken in ready:
                os.read(self._woken, 1 << 10)
                self._reap()
            if self._control.fileno() in ready and not self._take_next():
                return  # the children die with us

    def _take_next(self) -> bool:
        """Carry out the next order, or say why not; False when the gateway is gone.

        Of its descriptors nothing but a living child's status socket stays open.
        """
        try:
            message, descriptors, flags, _ = socket.recv_fds(self._control, len(ORDER), ORDER_DESCRIPTORS)
        except ConnectionError:
            return False
        if descriptors:  # otherwise its sender sees the end of both sockets
            status = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptors[0])
            try:
                pid = self._fork(status, descriptors[1:], cut=bool(flags & socket.MSG_CTRUNC))
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

    def _fork(self, status: socket.socket, descriptors: list[int], *, cut: bool) -> int:
        """A child for one order; its process id. Raises OSError."""
        if cut or 1 + len(descriptors) < ORDER_DESCRIPTORS:  # the kernel's way to say that no number is free
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pid = os.fork()
        if pid == 0:
            self._child(status, *descriptors)
        return pid

    def _reap(self) -> None:
        """Say of each ended child how it ended, on a socket that it had no part in."""
        for pid in list(self._children):
            found, ended = os.waitpid(pid, os.WNOHANG)
            if found == pid:
                with self._children.pop(pid) as status:
                    _report(status, ChildStatus.ENDED, os.waitstatus_to_exitcode(ended))

    def _child(self, status: socket.socket, line_fd: int, weights_fd: int) -> NoReturn:
        """One upload, with nothing open of the others'. Exits with EX_OSERR if it does not get as far as the upload."""
        code = os.EX_OSERR
        try:
            signal.set_wakeup_fd(-1)
            for own in (self._control, status, *self._children.values()):
                own.close()
            os.close(self._woken)
            os.close(self._waker)
            shut_away(self._settings.memory_bytes, self._settings.wall_seconds)
            line = Line(socket.socket(fileno=line_fd))
            order = Order.receive(line, self._settings.memory_bytes)
            code = 1
            work(self._measure, order, weights_fd, Answer(line))
            code = 0
        finally:
            os._exit(code)


def _report(status: socket.socket, what: ChildStatus, number: int) -> None:
    with suppress(OSError):  # nobody asks any more
        status.sendall(STATUS.pack(what, number))


def _announce(status: socket.socket, pid: int) -> None:
    """Say that there is a child, and hand over what it can be ended with, whether we hang or not."""
    try:
        handle = os.pidfd_open(pid)
        try:
            socket.send_fds(status, [STATUS.pack(ChildStatus.STARTED, pid)], [handle])
        finally:
            os.close(handle)
    except OSError:  # a system without such, or no number free
        _report(status, ChildStatus.STARTED, pid)


def main() -> None:
    """Standard input holds the settings, the first argument is the control socket's number."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the gateway's to answer
    settings = WorkerSettings.decoded(sys.stdin.buffer.read())
    point_at_nothing(sys.stdin.fileno())
    try:
        measure = measure_of(settings)
    except GatewayError as error:
        Line(control).send({"failed": error.message})
        return
    warm()
    gc.collect()  # the collector never looks again at what stands now: see gc.freeze, and docs/performance.md
    gc.freeze()
    give_way()
    Forker(control, measure, settings).run()


if __name__ == "__main__":
    main()
