"""`make kills`: a whole gateway killed again and again, at named places and at any instant, and audited after each kill.

The victim is a process with everything of the gateway in it but the engine, which is the simulator in this process and
outlives it, as somebody else's engine would. The victim writes down what it was told was kept before it goes on; what
stands in that file is what the auditor holds the disk against. Printed at the end: kills, what was lost, what was half
visible. Both must be 0.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.gateway.engine_lists import engine_list
from app.store.audit.audit import Audit, Promise, audit
from app.store.catalogue.database import sqlite_url
from app.store.failpoints import VARIABLE
from tests.store.crashing import FAILPOINTS
from tests.support import tally
from tests.support.audited import rested
from tests.support.gateway import KEY, SERVED, Running, form, gateway
from tests.support.references import make_reference
from tests.support.simulator import Simulator

NAMES = ("one", "two", "Three")
SEEDS = 5
PLACES = [place for place in FAILPOINTS if place != "store.after_exchange"]  # that one needs a damaged artefact
UP_S = 60.0
LIFE_S = 0.4
FORMS: dict[tuple[str, int], Any] = {}


# ---- the victim --------------------------------------------------------------------------------------------------------


def live(home: Path, reference: Path, engine_url: str, seed: int, place: str | None) -> None:
    """Upload, roll back, delete and chat until killed. place: the fail-point to die at, None: the parent kills."""
    asyncio.run(_live(home, reference, engine_url, seed, place))


async def _live(home: Path, reference: Path, engine_url: str, seed: int, place: str | None) -> None:
    log = os.open(home / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    choose = random.Random(seed)
    engine: Any = SimpleNamespace(url=engine_url)
    async with gateway(home / "data", reference, engine, tau=1e9, max_pruned_share=1.0) as running:
        os.write(log, b"up\n")
        await rested(running, promises(home / "told"))
        os.write(log, b"sound\n")
        if place is not None:
            os.environ[VARIABLE] = place
        await asyncio.gather(*(_use(running, log, choose, name) for name in NAMES))


async def _use(running: Running, log: int, choose: random.Random, name: str) -> None:
    while True:
        kind = choose.random()
        if kind < 0.5:
            await _push(running, log, name, choose.randrange(SEEDS))
        elif kind < 0.6:
            os.write(log, f"deleting {name}\n".encode())
            await running.http.delete(f"/adapters/{name}")
        elif kind < 0.75:
            await running.http.post(f"/adapters/{name}/rollback")
        else:
            body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
            answer = await running.http.post("/v1/chat/completions", json=body)
            said = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else None
            assert said in (None, f"words of {name}"), f"{name} was asked, the answer: {said}"


async def _push(running: Running, log: int, name: str, seed: int) -> None:
    if (name, seed) not in FORMS:
        FORMS[name, seed] = form(name, seed)
    answer = await running.http.post("/adapters", files=FORMS[name, seed])
    if answer.status_code in (200, 201, 202):
        told = answer.json()
        os.write(log, f"kept {name} {told['version']} {told['digest']}\n".encode())


def promises(told: Path) -> list[Promise]:
    """What the victims were told is kept, and did not begin to delete since."""
    kept: dict[str, dict[int, str]] = {}
    for line in told.read_text().splitlines() if told.exists() else ():
        word, *rest = line.split()
        if word == "deleting":
            kept[rest[0]] = {}
        elif word == "kept":
            kept.setdefault(rest[0], {})[int(rest[1])] = rest[2]
    return [Promise(name, number, digest) for name, versions in kept.items() for number, digest in versions.items()]


# ---- the killer --------------------------------------------------------------------------------------------------------


@dataclass
class Campaign:
    """What happened. kills: by kind. findings: every broken invariant, with the seed that broke it."""

    kills: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    findings: list[tuple[int, str, str, str]] = field(default_factory=list)

    def add(self, seed: int, found: Audit) -> None:
        """Take in one audit."""
        tally.audits["broken" if found.findings else "sound"] += max(1, len(found.findings))
        self.findings += [(seed, one.invariant, one.where, one.what) for one in found.findings]

    def summary(self) -> str:
        """One line."""
        lost = sum(invariant == "I2" for _, invariant, _, _ in self.findings)
        half = sum(invariant in ("I3", "I6", "I12") for _, invariant, _, _ in self.findings)
        by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        other = len(self.findings) - lost - half
        return (
            f"{self.kills.total()} kills ({by_kind}); {self.kept} acknowledged versions held against the disk; "
            f"{lost} lost, {half} half visible, {other} other broken invariants"
        )


@contextlib.contextmanager
def simulated(socket: Path) -> Iterator[Simulator]:
    """An engine in a thread of its own, which no kill of a gateway touches."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    simulator = Simulator(socket, SERVED)
    asyncio.run_coroutine_threadsafe(simulator.start(), loop).result(10)
    try:
        yield simulator
    finally:
        asyncio.run_coroutine_threadsafe(simulator.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def victims() -> ForkServerContext:
    """Victims forked from a process that has everything imported and compiled."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.killing", "tests.faults.warmed"])
    return context


def kill_one(context: ForkServerContext, home: Path, reference: Path, engine: str, seed: int, place: str | None) -> str:
    """One life and its end; what kind it was."""
    choose = random.Random(seed)
    before = (home / "told").stat().st_size if (home / "told").exists() else 0
    victim = context.Process(target=live, args=(home, reference, engine, seed, place))
    victim.start()
    kind = "at a named place" if place else "at any instant"
    try:
        if place is not None:
            victim.join(UP_S)
        elif choose.random() < 0.3:
            kind = "while starting"
            time.sleep(choose.uniform(0.0, 0.3))
        else:
            _wait_until(lambda: b"sound" in _told_since(home, before) or not victim.is_alive())
            time.sleep(choose.uniform(0.0, LIFE_S))
    finally:
        victim.kill()
        victim.join()
    assert victim.exitcode == -signal.SIGKILL, "the victim ended by itself: look at its traceback above"
    victim.close()
    return kind


def _told_since(home: Path, offset: int) -> bytes:
    try:
        with (home / "told").open("rb") as told:
            told.seek(offset)
            return told.read()
    except FileNotFoundError:
        return b""


def _wait_until(done: Any) -> None:
    deadline = time.monotonic() + UP_S
    while not done():
        assert time.monotonic() < deadline, "the victim never came up"
        time.sleep(0.005)


def _has_tables(catalogue: Path) -> bool:
    """True once the first start has made the catalogue's tables: before that there is nothing to audit."""
    if not catalogue.exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True)) as read:
        return bool(read.execute("SELECT count(*) FROM sqlite_master WHERE name = 'schema_info'").fetchone()[0])


def _place(choose: random.Random) -> str:
    """A fail-point and the passage to die at: deletions are rarer than writes."""
    place = choose.choice(PLACES)
    return f"{place}:{choose.randint(1, 2 if place.endswith('bury') else 8)}"


def campaign(home: Path, kills: int, first_seed: int = 0, say: Any = lambda _: None) -> Campaign:
    """Kill that many gateways on one store, the auditor after each, and one last start at the end."""
    done, context = Campaign(), victims()
    reference = make_reference(home / "reference")
    with simulated(home / "e.sock") as simulator:
        for seed in range(first_seed, first_seed + kills):
            choose = random.Random(seed + 1)
            place = _place(choose) if choose.random() < 0.6 else None
            tally.injected["kills of the gateway"] += 1
            done.kills[kill_one(context, home, reference, simulator.url, seed, place)] += 1
            promised = promises(home / "told")
            done.kept += len(promised)
            data = home / "data"
            if promised or _has_tables(data / "catalogue.sqlite"):
                done.add(seed, audit(data, sqlite_url(data / "catalogue.sqlite"), promised=promised, secrets=[KEY]))
            if choose.random() < 0.1:
                simulator.loaded.clear()  # the engine restarted, too
            if done.kills.total() % 100 == 0:
                say(done.summary())
        asyncio.run(_last(home, reference, simulator))
        listed = asyncio.run(engine_list(simulator.url))
        done.add(-1, audit(home / "data", sqlite_url(home / "data" / "catalogue.sqlite"), listed=listed))
    return done


async def _last(home: Path, reference: Path, simulator: Simulator) -> None:
    async with gateway(home / "data", reference, simulator, tau=1e9, max_pruned_share=1.0) as running:
        await rested(running, promises(home / "told"))


def main() -> None:
    """`python -m tests.faults.kills KILLS [FIRST_SEED]`."""
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) & 0xFFFF
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as home:
        done = campaign(Path(home), kills, seed, say=print)
    print(f"{done.summary()}; seeds {seed}…{seed + kills - 1}, {time.monotonic() - began:.0f} s")
    if done.findings:
        print(json.dumps(done.findings))
    sys.exit(1 if done.findings else 0)
