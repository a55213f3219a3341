"""kill -9 at every named place, and at random instants: nothing half-written is visible, nothing acknowledged is lost."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from app.store.failpoints import VARIABLE, failpoint
from tests.store.crashing import FAILPOINTS, audit, write_until_killed
from tests.support.waiting import STUCK_S

KILLS = 60
NOBODY = 65534
SOURCES = Path(__file__).parents[2] / "app" / "store"


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Children forked from a small clean process: 20 ms each instead of half a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store.crashing"])
    return context


def run_and_kill(processes: ForkServerContext, lines: int | None, *arguments: Any, seconds: float = 0.0) -> None:
    """Start a writer; kill it `seconds` after so many more lines of its were acknowledged, or (None) let its fail-point."""
    told = arguments[0] / "acknowledged"
    before = _lines(told)
    process = processes.Process(target=write_until_killed, args=arguments)
    process.start()
    try:
        if lines is None:
            process.join(30.0)
        else:
            until_stuck = time.monotonic() + STUCK_S
            while _lines(told) < before + lines and process.is_alive() and time.monotonic() < until_stuck:
                time.sleep(0.001)
            process.join(seconds)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, "the writer ended by itself: look at its traceback above"
    process.close()


def _lines(told: Path) -> int:
    return told.read_bytes().count(b"\n") if told.exists() else 0


@pytest.mark.parametrize("place", FAILPOINTS)
def test_killed_at_a_named_place(tmp_path: Path, processes: ForkServerContext, place: str) -> None:
    for seed in range(3):
        started = time.monotonic()
        run_and_kill(processes, None, tmp_path, seed, place)
        assert time.monotonic() - started < 25.0, f"{place} was never reached"
        audit(tmp_path)


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path: Path, processes: ForkServerContext) -> None:
    choose = random.Random(2)
    served = []
    for seed in range(KILLS):
        lines, seconds = choose.randrange(12), choose.uniform(0.0, 0.03)
        run_and_kill(processes, lines, tmp_path, seed, None, seconds=seconds)
        served.append(audit(tmp_path))
    assert max(served) > 5, "the writers got far enough for this to mean something"


@pytest.fixture
def nobodys_home() -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    home = Path(tempfile.mkdtemp(prefix="store-"))
    os.chown(home, NOBODY, NOBODY)
    yield home
    shutil.rmtree(home)


def test_it_works_without_root(nobodys_home: Path, processes: ForkServerContext) -> None:
    """Root may rename and remove what nobody else may: the same with an ordinary user's rights."""
    for seed in range(4):
        run_and_kill(processes, 30, nobodys_home, seed, None, NOBODY)
    assert audit(nobodys_home) > 0
    assert "deleting" in (nobodys_home / "acknowledged").read_text()


def test_the_list_of_places_is_complete() -> None:
    text = "".join(path.read_text() for path in SOURCES.rglob("*.py"))
    plain = {place for place in FAILPOINTS if not place.startswith("store.after_write.")}
    assert text.count("failpoint(") - text.count("def failpoint(") == len(plain) + 1
    assert all(f'failpoint("{place}")' in text for place in plain)


@pytest.mark.parametrize("value", [None, "", "store.after_fsynk"])
def test_without_its_name_in_the_environment_a_place_is_harmless(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """And a place with a number lets that many pass."""
    monkeypatch.setenv(VARIABLE, "store.after_fsync:3")
    failpoint("store.after_fsync")
    assert os.environ[VARIABLE] == "store.after_fsync:2"
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    failpoint("store.after_fsync")
