"""Uploads through a sandbox whose children do as the configuration says (bad_sandbox_worker.py)."""

import os
import select
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import pytest

from app.domain.artefact import Artefact
from app.domain.digest import digest_of
from app.domain.errors import SCREENING_TIMEOUT, GatewayError, Refused, Stage, Unavailable
from app.domain.lora import Received
from app.domain.verdict import Verdict
from app.sandbox.client import Sandbox
from tests.support.adapters import Upload

BOUND_S: Final = 120.0
"""Seconds to wait for what must happen, on however busy a machine."""

MEMORY = 256 << 20
WALL_S = 2.0
BAD = "tests.support.bad_sandbox_worker"


class Heard:
    """Steps that keep what they hear."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.verdict: Verdict | None = None
        self.valid = False

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        assert seconds >= 0
        self.stages.append(stage)

    def validated(self) -> None:
        self.valid = True

    def screened(self, verdict: Verdict) -> None:
        self.verdict = verdict


def through(how: Any, upload: Upload, directory: Path, config: bytes | None = None) -> tuple[Artefact | None, Heard]:
    """The upload's way through `how`."""
    weights, heard = upload.weights_bytes, Heard()
    config = upload.config_bytes if config is None else config
    (directory / "weights").write_bytes(weights)
    received = Received(digest_of(config), digest_of(weights), len(config), len(weights))
    with (directory / "weights").open("rb") as file:
        return how(config, file, received, heard), heard


def refused(bad: Sandbox, upload: Upload, directory: Path, wish: str) -> GatewayError:
    with pytest.raises((Refused, Unavailable)) as caught:
        through(bad, upload, directory, wish.encode() + b"|" + upload.config_bytes)
    return caught.value


def sound(bad: Sandbox, upload: Upload, directory: Path) -> None:
    """The next upload works."""
    artefact, _ = through(bad, upload, directory)
    assert artefact is not None


def sound_in_the_end(hasty: Sandbox, upload: Upload, directory: Path) -> None:
    """Until an upload works: a busy machine may be too slow for some."""
    while True:
        try:
            return sound(hasty, upload, directory)
        except Refused as error:
            assert error.code is SCREENING_TIMEOUT


class InFlight:
    """An upload that a child is at work on, from `with` until `finished`. wish: what the child does then."""

    def __init__(self, sandbox: Sandbox, upload: Upload, directory: Path, wish: str = "wait") -> None:
        self._sandbox, self._upload, self._directory, self._wish = sandbox, upload, directory, wish
        self._held = ExitStack()
        self._result: Future[tuple[Artefact | None, Heard]]

    def __enter__(self) -> Self:
        self._directory.mkdir()
        arrived, go = self._directory / "arrived", self._directory / "go"
        for fifo in (arrived, go):
            os.mkfifo(fifo)
        seen = os.open(arrived, os.O_RDWR)
        self._held.callback(os.close, seen)
        self._go = os.open(go, os.O_RDWR)
        self._held.callback(os.close, self._go)
        config = f"{self._wish}:{self._directory}".encode() + b"|" + self._upload.config_bytes
        pool = self._held.enter_context(ThreadPoolExecutor(1))
        self._result = pool.submit(through, self._sandbox, self._upload, self._directory, config)
        waiting = select.poll()
        waiting.register(seen, select.POLLIN)
        assert waiting.poll(BOUND_S * 1000), "no child began with it"
        return self

    def finished(self) -> Artefact:
        """Let it go on, to its end. Raises what it was refused with."""
        os.write(self._go, b"!")
        artefact, _ = self._result.result(BOUND_S)
        assert artefact is not None
        return artefact

    def __exit__(self, *_: object) -> None:
        os.write(self._go, b"!")
        self._held.close()


def worker_pid(sandbox: Sandbox) -> int:
    """The worker's process id, while it runs."""
    assert sandbox._worker is not None
    assert sandbox._worker.process.poll() is None
    return sandbox._worker.process.pid


def children(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def descriptors(pid: int) -> list[int]:
    """Numbers of its open files."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
