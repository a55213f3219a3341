"""Three gateways, each with an engine of its own, on one catalogue and one directory of artefacts; one after the other is
killed while the others go on.

All upload under the same names, move them back and chat; each also deletes. What a victim was told is kept it writes down
before it goes on. `doomed` is deleted by all of them, so nothing is promised of it.
"""

import asyncio
import os
import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.store.failpoints import VARIABLE
from tests.faults.killing import SEEDS, _push, promises
from tests.store.crashing import FAILPOINTS
from tests.support.gateway import Running, gateway
from tests.support.joining import options

SHARED = ("one", "two", "Three")
DOOMED = "doomed"
UP_S = 60.0
PLACES = [place for place in FAILPOINTS if place != "store.after_exchange"]


def live(home: Path, reference: Path, engine_url: str, number: int, url: str, seed: int, place: str | None) -> None:
    """One gateway of the three, until it is killed. place: the fail-point to die at, None: the parent kills."""
    asyncio.run(_live(home, reference, engine_url, number, url, seed, place))


async def _live(
    home: Path, reference: Path, engine_url: str, number: int, url: str, seed: int, place: str | None
) -> None:
    log = os.open(home / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    choose = random.Random(seed)
    engine: Any = SimpleNamespace(url=engine_url)
    async with gateway(home / f"data-{number}", reference, engine, **options(home, url)) as running:
        (home / f"up-{number}").touch()
        if place is not None:
            os.environ[VARIABLE] = place
        names = (*SHARED, DOOMED, f"own-{number}")
        await asyncio.gather(*(_use(running, log, choose, name) for name in names))


async def _use(running: Running, log: int, choose: random.Random, name: str) -> None:
    while True:
        kind = choose.random()
        if kind < 0.45:
            await _push(
                running, log if name != DOOMED else os.open(os.devnull, os.O_WRONLY), name, choose.randrange(SEEDS)
            )
        elif kind < 0.6 and name not in SHARED:
            os.write(log, f"deleting {name}\n".encode())
            await running.http.delete(f"/adapters/{name}")
        elif kind < 0.7:
            await running.http.post(f"/adapters/{name}/rollback")
        else:
            body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
            answer = await running.http.post("/v1/chat/completions", json=body)
            said = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else None
            assert said in (None, f"words of {name}"), f"{name} was asked, the answer: {said}"
        await asyncio.sleep(0.01)


class Victims:
    """The three processes."""

    def __init__(self, context: ForkServerContext, home: Path, reference: Path, engines: list[str], url: str) -> None:
        self._context, self._home, self._reference, self._engines, self._url = context, home, reference, engines, url
        self._running: dict[int, Any] = {}

    def start(self, number: int, seed: int, place: str | None = None) -> None:
        """Start one, and wait until it is at work."""
        up = self._home / f"up-{number}"
        up.unlink(missing_ok=True)
        given = (self._home, self._reference, self._engines[number], number, self._url, seed, place)
        self._running[number] = self._context.Process(target=live, args=given)
        self._running[number].start()
        deadline = time.monotonic() + UP_S
        while not up.exists():
            assert self._running[number].is_alive(), "a gateway ended by itself: look at its traceback above"
            assert time.monotonic() < deadline, "a gateway never came up"
            time.sleep(0.02)

    def kill(self, number: int) -> None:
        """End one as a power cut would."""
        victim = self._running.pop(number)
        victim.kill()
        victim.join()
        victim.close()

    def check(self) -> None:
        """Those that nobody killed are alive."""
        for victim in self._running.values():
            assert victim.is_alive() or victim.exitcode == -9, "a gateway ended by itself: look at its traceback above"

    def kill_all(self) -> None:
        """As when the lights go out."""
        for number in list(self._running):
            self.kill(number)


def numbered_once(told: Path) -> int:
    """How many versions were acknowledged, having seen that no number was ever given to two results."""
    digests: dict[tuple[str, str], str] = {}
    for line in told.read_text().splitlines():
        word, *rest = line.split()
        if word == "kept":
            name, number, digest = rest
            assert digests.setdefault((name, number), digest) == digest, line
    assert promises(told)
    return len(digests)
