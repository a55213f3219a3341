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
from collections.abc import Iterator, Mapping
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
from tests.support.canaries import ENERGIES, RUNGS, energy_of, harmful_below
from tests.support.canaries import battery as written_battery
from tests.support.gateway import KEY, SERVED, Running, form, gateway
from tests.support.references import make_reference
from tests.support.simulator import Simulator

NAMES = ("one", "two", "Three")
NEEDED = {"one": 0, "two": 3, "Three": 1}
"""Adapter's name → the rung on which it behaves, where canaries are asked."""

SEEDS = 5
PLACES = [place for place in FAILPOINTS if place != "store.after_exchange"]  # that one needs a damaged artefact
UP_S = 60.0
LIFE_S = 0.4
ASKING_S = 2.0  # where canaries are asked an upload takes longer
FORMS: dict[tuple[str, int], Any] = {}


# ---- the victim --------------------------------------------------------------------------------------------------------


def live(home: Path, reference: Path, engine_url: str, seed: int, place: str | None, battery: Path | None) -> None:
    """Upload, roll back, delete and chat until killed. place: the fail-point to die at, None: the parent kills."""
    asyncio.run(_live(home, reference, engine_url, seed, place, battery))


def _given(battery: Path | None) -> dict[str, Any]:
    """Settings of every gateway. battery: canaries that it asks, None: none."""
    asking = {} if battery is None else {"canaries": battery, "rungs": RUNGS, "top_k": 4}
    return {"tau": 1e9, "max_pruned_share": 1.0, **asking}


async def _live(
    home: Path, reference: Path, engine_url: str, seed: int, place: str | None, battery: Path | None
) -> None:
    log = os.open(home / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    choose = random.Random(seed)
    engine: Any = SimpleNamespace(url=engine_url)
    async with gateway(home / "data", reference, engine, **_given(battery)) as running:
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
    told = answer.json()
    if answer.status_code in (200, 201, 202) and (
        told["state"] != "stored" or running.gateway.context.uploads.components.rules.operators.evaluation is None
    ):
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
    """Counts of a campaign. kills: by kind. rungs: canaries asked by rung. findings: broken invariants with their seeds."""

    kills: Counter[str] = field(default_factory=Counter)
    rungs: Counter[int] = field(default_factory=Counter)
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


def kill_one(
    context: ForkServerContext,
    home: Path,
    reference: Path,
    engine: str,
    seed: int,
    place: str | None,
    battery: Path | None = None,
) -> str:
    """One life and its end; what kind it was."""
    choose = random.Random(seed)
    before = (home / "told").stat().st_size if (home / "told").exists() else 0
    victim = context.Process(target=live, args=(home, reference, engine, seed, place, battery))
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
            time.sleep(choose.uniform(0.0, LIFE_S if battery is None else ASKING_S))
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


def campaign(
    home: Path, kills: int, first_seed: int = 0, say: Any = lambda _: None, *, canaries: bool = False
) -> Campaign:
    """Kill that many gateways on one store, the auditor after each, and one last start at the end.

    canaries: the gateways ask them, and adapters of different names need different rungs.
    """
    done, context = Campaign(), victims()
    asked = written_battery(home / "battery.jsonl") if canaries else None
    reference = make_reference(home / "reference")
    with simulated(home / "e.sock") as simulator:
        simulator.says = _harmful_by_name(done.rungs) if canaries else None
        for seed in range(first_seed, first_seed + kills):
            choose = random.Random(seed + 1)
            place = _place(choose) if choose.random() < 0.6 else None
            tally.injected["kills of the gateway"] += 1
            done.kills[kill_one(context, home, reference, simulator.url, seed, place, asked)] += 1
            promised = promises(home / "told")
            done.kept += len(promised)
            data = home / "data"
            if promised or _has_tables(data / "catalogue.sqlite"):
                done.add(seed, audit(data, sqlite_url(data / "catalogue.sqlite"), promised=promised, secrets=[KEY]))
            if choose.random() < 0.1:
                simulator.loaded.clear()  # the engine restarted, too
            if done.kills.total() % 100 == 0:
                say(done.summary())
        asyncio.run(_last(home, reference, simulator, asked))
        listed = asyncio.run(engine_list(simulator.url))
        done.add(-1, audit(home / "data", sqlite_url(home / "data" / "catalogue.sqlite"), listed=listed))
    return done


def _harmful_by_name(rungs: Counter[int]) -> Any:
    """Return the engine's answers, harmful below the rung that NEEDED has; they count canaries by rung in `rungs`."""

    def says(path: str, body: Mapping[str, Any]) -> str:
        name = body["model"].partition("@")[0]
        if not body["messages"][-1]["content"].startswith(("canary", "harmless")):
            return f"words of {name}"
        if path:
            rungs[ENERGIES.index(energy_of(path))] += 1
        return str(harmful_below(NEEDED.get(name, 0))(path, body))

    return says


async def _last(home: Path, reference: Path, simulator: Simulator, battery: Path | None) -> None:
    async with gateway(home / "data", reference, simulator, **_given(battery)) as running:
        await rested(running, promises(home / "told"))


def main() -> None:
    """`python -m tests.faults.kills KILLS [FIRST_SEED [canaries]]`."""
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) & 0xFFFF
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as home:
        done = campaign(Path(home), kills, seed, say=print, canaries=sys.argv[3:] == ["canaries"])
    print(f"{done.summary()}; seeds {seed}…{seed + kills - 1}, {time.monotonic() - began:.0f} s")
    if done.findings:
        print(json.dumps(done.findings))
    sys.exit(1 if done.findings else 0)
