"""Usage of a gateway that is killed: what `/usage` has shown stays, and nothing is counted twice."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from app.gateway import usage_ledger
from app.store.failpoints import VARIABLE
from tests.faults.killing import simulated, victims
from tests.support import tally
from tests.support.gateway import SERVED, Running, gateway
from tests.support.references import make_reference
from tests.support.simulated_chunks import TOKENS
from tests.support.waiting import STUCK_S

CHATS_AT_ONCE: Final = 4
PROMPT: Final = 3
"""Prompt tokens that the simulator tells of every chat."""

PLACES: Final = [f"catalogue.{when}_commit:{number}" for number in (2, 5) for when in ("before", "after")]
LIVES: Final = (*PLACES, None, None)
"""Place at which each life ends; None: as soon as the timer alone has written something."""


def live(home: Path, reference: Path, engine_url: str, place: str | None) -> None:
    """Chat until killed, and write down what was begun and what was shown."""
    asyncio.run(_live(home, reference, engine_url, place))


async def _live(home: Path, reference: Path, engine_url: str, place: str | None) -> None:
    log = os.open(home / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    engine: Any = SimpleNamespace(url=engine_url)
    async with gateway(home / "data", reference, engine, audit_seconds=0) as running:
        if place is not None:
            os.environ[VARIABLE] = place
        looks = [] if place is None else [_look(running, log)]
        await asyncio.gather(*(_chat(running, log) for _ in range(CHATS_AT_ONCE)), *looks)


async def _chat(running: Running, log: int) -> None:
    body = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
    while True:
        os.write(log, b"begun\n")
        assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200


async def _look(running: Running, log: int) -> None:
    while True:
        lines = (await running.http.get("/usage")).json()["usage"]
        os.write(log, f"shown {sum(line['requests'] for line in lines)}\n".encode())


def written(data: Path) -> tuple[int, int, int]:
    """Requests, prompt and completion tokens in the catalogue."""
    sums = "SELECT sum(requests), sum(prompt_tokens), sum(completion_tokens) FROM usage"
    catalogue = data / "catalogue.sqlite"
    if not catalogue.exists():
        return 0, 0, 0
    with contextlib.closing(sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True, timeout=STUCK_S)) as read:
        try:
            found = read.execute(sums).fetchone()
        except sqlite3.OperationalError:  # not made yet
            return 0, 0, 0
    return found[0] or 0, found[1] or 0, found[2] or 0


@pytest.mark.slow
def test_a_kill_takes_nothing_that_was_shown_and_counts_nothing_twice(tmp_path: Path) -> None:
    context, reference = victims(), make_reference(tmp_path / "reference")
    ends: Counter[str] = Counter()
    with simulated(tmp_path / "e.sock") as simulator:
        for place in LIVES:
            before = written(tmp_path / "data")[0]
            victim = context.Process(target=live, args=(tmp_path, reference, simulator.url, place))
            victim.start()
            try:
                if place is None:
                    deadline = time.monotonic() + STUCK_S
                    while written(tmp_path / "data")[0] == before:
                        assert time.monotonic() < deadline, "nothing was ever written"
                        time.sleep(0.01)
                else:
                    victim.join(STUCK_S)
            finally:
                victim.kill()
                victim.join()
            assert victim.exitcode == -signal.SIGKILL, "the victim ended by itself: look at its traceback above"
            tally.injected["kills of the gateway"] += 1
            told = (tmp_path / "told").read_text().split("\n")
            shown = max((int(line.split()[1]) for line in told if line.startswith("shown ")), default=0)
            requests, prompt, completion = written(tmp_path / "data")
            assert shown <= requests <= told.count("begun"), place
            assert (prompt, completion) == (requests * PROMPT, requests * TOKENS), "every batch whole or not at all"
            ends["grown" if requests > before else "not grown"] += 1
    assert ends["grown"] >= len(LIVES) // 2, "the victims got far enough for this to mean something"
    assert usage_ledger.FLUSH_S < 1.0, "at most one second's requests are lost"
