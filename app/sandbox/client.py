"""Strangers' tensors are read, measured and written anew in a process of their own, shut away (sandboxed.py).

One child per upload, forked from a process that is warm already: its death by memory, time or a signal is one refusal, and
the next upload finds everything as before. What comes back is parsed as a stranger's words (sandbox_frames.py).
"""

import io
import json
import logging
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from app.domain.artefact import Artefact
from app.domain.lora import Received
from app.errors import SCREENING_FAILED, SCREENING_KILLED, SCREENING_TIMEOUT, GatewayError, Refused, Unavailable
from app.observe.log import event
from app.sandbox.answer import Answer, Listener
from app.sandbox.worker import SETTINGS_BYTES
from app.sanitise import Measure, Steps

MODULE: Final = "app.sandbox.worker"
START_S: Final = 600.0
"""Seconds until it is ready: torch, kernels, and the reference's digest, a second per GB."""

READ_S: Final = 60.0
"""Seconds for reading and writing an upload's gigabytes, beside two screenings."""

GRACE_S: Final = 5.0
"""Seconds after its own alarm until a child is ended from outside, and again until the whole process is."""

PASSED_ON: Final = frozenset({
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "NUMBA_CPU_NAME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SCREEN_PLAIN"),
})  # fmt: skip
"""Variables it gets of ours, where set: no key, no token, no URL."""

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
        self._settings = _settings(measure, reference) | {"memory_bytes": memory_bytes, "wall_seconds": self._wall_s}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._closed = False

    def start(self) -> None:
        """Start it, if it does not run; does not wait until it is warm. Raises OSError."""
        with self._lock:
            self._spawn()

    def warm(self) -> None:
        """Wait until it can take an upload. Raises Unavailable SCREENING_FAILED when it cannot be started."""
        with self._lock:
            self._awake()

    def close(self) -> None:
        """End it and whatever it is at."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()  # before the lock: somebody may hold it, waiting for it to be warm
        with self._lock:
            self._end()

    def __call__(self, config: bytes, weights: io.BufferedReader, received: Received, steps: Steps) -> Artefact | None:
        """See `Sanitise`. Also raises Refused SCREENING_KILLED or SCREENING_TIMEOUT when the child came to an end."""
        name = secrets.token_hex(8)
        sent = [received.config_digest.hex, received.weights_digest.hex, received.config_bytes, received.weights_bytes]
        with ExitStack() as held:
            ours, theirs = socket.socketpair()
            held.callback(ours.close)
            status, told = os.pipe()
            held.callback(os.close, status)
            try:
                order = json.dumps({"id": name, "config": config.hex(), "received": sent}).encode()
                self._order(order, [weights.fileno(), theirs.fileno(), told])
            finally:
                theirs.close()
                os.close(told)
            answer = Answer(ours, time.monotonic() + self._wall_s + GRACE_S)
            try:
                return Listener(self._measure, received, steps).listen(answer)
            except EOFError:
                raise self._ended(name, status) from None
            except TimeoutError:
                self._kill(name, status)
                raise Refused(SCREENING_TIMEOUT, f"it was ended after {self._wall_s:g} s") from None
            except GatewayError:
                raise
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                self._kill(name, status)
                event("sandbox_broke_form", logging.ERROR, why=str(error))
                raise Refused(SCREENING_KILLED, "what came back from measuring it was not in form") from error

    # ---- the process -------------------------------------------------------------------------------------------------

    def _order(self, message: bytes, fds: list[int]) -> None:
        with self._lock:
            for last in (False, True):
                control = self._awake()
                try:
                    socket.send_fds(control, [message], fds)
                except OSError as error:
                    self._end()  # it died since; one new start
                    if last:
                        raise Unavailable(SCREENING_FAILED, f"the screening process is gone: {error}") from error
                else:
                    return

    def _awake(self) -> socket.socket:
        control = self._spawn()
        if not self._ready:
            control.settimeout(START_S)
            try:
                said = json.loads(control.recv(SETTINGS_BYTES) or b"{}")
            except (OSError, ValueError) as error:
                said = {"failed": str(error)}
            if not said.get("ready"):
                self._end()
                why = said.get("failed", "it ended at once")
                raise Unavailable(SCREENING_FAILED, f"the screening process does not start: {why}")
            self._ready = True
            control.settimeout(GRACE_S)
            level = logging.WARNING if said["network"] else logging.INFO
            event(
                "sandbox", level, network="reachable: this system lets no one leave it" if said["network"] else "none"
            )
        return control

    def _spawn(self) -> socket.socket:
        if self._closed:
            raise Unavailable(SCREENING_FAILED, "the gateway is stopping")
        if self._control is None or self._process is None or self._process.poll() is not None:
            self._end()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            environment["PYTHONPATH"] = str(Path(__file__).parents[2])
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self._module],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    cwd="/",
                )
            finally:
                theirs.close()
            ours.send(json.dumps(self._settings).encode())
            self._control = ours
        return self._control

    def _end(self) -> None:
        process, control = self._process, self._control
        self._process, self._control, self._ready = None, None, False
        if control is not None:
            control.close()
        if process is not None:
            process.kill()
            process.wait()

    def _kill(self, name: str, status: int) -> None:
        """End one child; where its parent does not answer either, both."""
        with self._lock:
            if self._control is not None:
                with suppress(OSError):
                    self._control.send(json.dumps({"kill": name}).encode())
        if _status(status, GRACE_S) is None:
            with self._lock:
                self._end()

    def _ended(self, name: str, status: int) -> Refused | Unavailable:
        """Its line broke off: in words."""
        code = _status(status, GRACE_S)
        event("sandbox_child_ended", logging.WARNING, status=code)
        self._measure.reference.check_unchanged()  # cut short under its eyes, that would be the operator's
        if code in TIMED_OUT:
            return Refused(SCREENING_TIMEOUT, f"it took longer than {self._wall_s:g} s")
        if code is None:
            return Unavailable(SCREENING_FAILED, "the screening process was ended from outside")
        return Refused(SCREENING_KILLED, f"the process that measured it ended with status {code}")


def _settings(measure: Measure, reference: Path) -> dict[str, Any]:
    target, limits = measure.target, measure.limits
    return {
        "model": target.name,
        "dtype": target.dtype.value,
        "max_rank": target.max_rank,
        "max_scaling": limits.max_scaling,
        "base_names": None if limits.base_names is None else sorted(limits.base_names),
        "reference": str(reference.resolve()),
        "reference_digest": measure.reference.digest.hex,
        "policy": asdict(measure.policy),
        "screen_seconds": measure.screen_seconds,
    }


def _status(pipe: int, seconds: float) -> int | None:
    """A child's exit status out of its pipe; None when none comes."""
    waiting = select.poll()  # not select(), which knows no file numbers above 1,023: each connection has one
    waiting.register(pipe, select.POLLIN)
    if not waiting.poll(seconds * 1000):
        return None
    try:
        return int(os.read(pipe, 32))
    except ValueError:
        return None
