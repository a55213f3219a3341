"""Gateway as a child process: started, waited for, and stopped, with its engine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import httpx

READY_TIMEOUT_S: Final = 600.0
"""Seconds to wait for /ready: the engine takes about one minute on two idle cores, several on busy ones."""

STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.5
LOG_LINES: Final = 30


class GatewayProcess:
    """Process of `python -m app serve` on loopback, logging to `data`/gateway.log."""

    def __init__(self, data: Path, port: int = 0, *args: str, served: Sequence[str] = ("--demo",)) -> None:
        """Start the process. port: 0, or one that is in use, chooses a free one. args: further flags.

        served: flags that say which model and reference are served.
        """
        data.mkdir(parents=True, exist_ok=True)
        self.data = data
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data / "gateway.log"
        place = ["--port", str(self.port), "--data", str(data)]
        command = [sys.executable, "-m", "app", "serve", *served, *place, *args]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_ready(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Block until /ready returns 200; `tell` gets the missing parts. Raises RuntimeError with the log's end."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the gateway ended with status {self.process.returncode}:\n{self.log_end()}")
            missing = self._missing()
            if missing is None:
                return
            tell(missing)
            time.sleep(POLL_S)
        raise RuntimeError(f"the gateway was not ready after {READY_TIMEOUT_S:.0f} s:\n{self.log_end()}")

    def _missing(self) -> str | None:
        try:
            answer = httpx.get(f"{self.url}/ready", timeout=10.0)
        except httpx.TransportError:
            return "the gateway starts"
        if answer.status_code == 200:
            return None
        parts = answer.json()["parts"]
        return ", ".join(f"{name}: {state}" for name, state in parts.items() if state != "ok")

    def log_end(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL to the whole group if the process does not end in time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def kill(self) -> None:
        """Send SIGKILL: to the gateway it is like a power failure."""
        self.process.kill()
        self.process.wait()


def _free_port(wanted: int) -> int:
    """Return `wanted` if it is free, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server will: an old TIME_WAIT does not matter
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
