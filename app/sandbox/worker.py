"""The process that strangers' tensors are read in: `python -m app.sandbox.worker`, started by sandbox.py and by nobody else.

It opens the reference and compiles the kernels once, gives up the network, and then, for each upload, forks a child that
gives up memory, time and files beyond its share, does the work, writes what it found to its own socket, and ends. The
parent process here reads nothing of an upload and stays small: a child's death is a number to report.
"""

import ctypes
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from app.domain.digest import Digest
from app.domain.lora import Received, ServingDtype, TargetModel
from app.domain.manifest import verdict_json
from app.domain.memory import out_of_memory
from app.domain.policy import policy_from
from app.domain.verdict import Verdict
from app.errors import GatewayError, Stage
from app.sanitise import Measure, sanitise
from app.screen.reference import open_reference
from app.screen.warm import warm
from app.uncollected import leave_uncollected
from app.validate.adapter import ValidateLimits

FRAME: Final = struct.Struct(">IQ")
"""A frame: bytes of JSON, bytes of payload, then both."""

MESSAGE_BYTES: Final = 1 << 17
"""Bytes of one order: adapter_config.json has at most 64 KiB, in hexadecimal twice that."""

SETTINGS_BYTES: Final = 1 << 17
OPEN_FILES: Final = 64
"""Descriptors a child may have beyond those it has at birth: two for each file of the reference, which stays mapped."""

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
"""Linux's own numbers."""


class Told:
    """The Steps of a child: each becomes a frame."""

    def __init__(self, out: socket.socket) -> None:
        self._out = out

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
        text = json.dumps(fields, allow_nan=False).encode()
        self._out.sendall(FRAME.pack(len(text), len(payload)) + text)
        self._out.sendall(payload)


def work(measure: Measure, order: Mapping[str, Any], weights_fd: int, told: Told) -> None:
    """One upload, in the child."""
    sent = order["received"]
    received = Received(Digest(sent[0]), Digest(sent[1]), sent[2], sent[3])
    try:
        with os.fdopen(weights_fd, "rb") as weights:
            made = sanitise(measure, bytes.fromhex(order["config"]), weights, received, told)
    except GatewayError as error:
        told.send({"refused": error.code.name, "message": error.message, "param": error.param})
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        told.send({"died": "it needed more memory than one upload may"})
    else:
        if made is not None:
            told.send({"config": made.config.hex()}, made.weights)
        told.send({"done": True})


def shut_away(memory_bytes: int, seconds: float) -> None:
    """Limits of one child. memory_bytes: beyond what it has at birth; seconds: by the clock, and on each core."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), sys.stderr.fileno())
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


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process: mapped private and writable, V among it where it is mapped."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def no_network() -> bool:
    """Leave for a network name space with nothing in it; False where this process may not."""
    libc = ctypes.CDLL(None)
    return any(libc.unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def measure_of(settings: Mapping[str, Any]) -> Measure:
    """From what sandbox.py wrote on standard input's first line."""
    names = settings["base_names"]
    reference = open_reference(Path(settings["reference"]), Digest(settings["reference_digest"]))
    return Measure(
        target=TargetModel(settings["model"], reference.modules, ServingDtype(settings["dtype"]), settings["max_rank"]),
        limits=ValidateLimits(settings["max_scaling"], None if names is None else frozenset(names)),
        reference=reference,
        policy=policy_from(settings["policy"]),
        screen_seconds=settings["screen_seconds"],
    )


def serve(control: socket.socket, measure: Measure, settings: Mapping[str, Any]) -> None:
    """Fork a child for each order, and say of each how it ended. Returns when the gateway is gone."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    control.send(json.dumps({"ready": True, "network": not no_network()}).encode())
    children: dict[int, tuple[str, int]] = {}
    waiting = select.poll()  # as in the gateway: no file number is too high for it
    waiting.register(control, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    while True:
        ready = {number for number, _ in waiting.poll()}
        if woken in ready:
            os.read(woken, 1 << 10)
            _reap(children)
        if control.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 3)
            if not message:
                return  # the children die with us
            order = json.loads(message)
            if "kill" in order:
                _kill(children, order["kill"])
                continue
            pid = os.fork()
            if pid == 0:
                inherited = [control.fileno(), woken, waker, fds[2], *(status for _, status in children.values())]
                _child(measure, settings, order, fds, inherited)
            os.close(fds[0])
            os.close(fds[1])
            children[pid] = (order["id"], fds[2])


def _reap(children: dict[int, tuple[str, int]]) -> None:
    """Write each ended child's status into its pipe, which it had no part in."""
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            _, pipe = children.pop(pid)
            with suppress(BrokenPipeError):  # nobody asks any more
                os.write(pipe, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(pipe)


def _kill(children: Mapping[int, tuple[str, int]], wanted: str) -> None:
    for pid, (name, _) in children.items():
        if name == wanted:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so still ours


def _child(
    measure: Measure, settings: Mapping[str, Any], order: Mapping[str, Any], fds: list[int], inherited: list[int]
) -> NoReturn:
    """One upload, with nothing open of the others'."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for fd in inherited:
            os.close(fd)
        shut_away(settings["memory_bytes"], settings["wall_seconds"])
        work(measure, order, fds[0], Told(socket.socket(fileno=fds[1])))
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    """Standard input is the control socket; its first message holds the settings."""
    control = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the gateway's to answer
    settings = json.loads(control.recv(SETTINGS_BYTES))
    try:
        measure = measure_of(settings)
    except GatewayError as error:
        control.send(json.dumps({"failed": error.message}).encode())
        return
    warm()
    leave_uncollected()
    serve(control, measure, settings)


if __name__ == "__main__":
    main()
