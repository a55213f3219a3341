"""A healthy key's chat while five hostile keys and callers without one attack a real engine's gateway.

`python -m tests.faults.siege --minutes 10` measures and says whether the aims hold.

By turns the healthy key chats alone, and while everything of tests/faults/siege_attacks.py goes on at once: answers of one
line as a whole, and streams for the time to their first token. The processes are the gateway, its screening sandbox, the
embedded engine, the attackers, and this one. All share the machine's processors; the attackers take
a tenth of what others may, unless told otherwise (`--rude`), and what is left over.

Exit status 1 where an aim is missed: a healthy answer that failed, p99 of whole answers more than twice the idle one,
memory above its bound, an engine started again, a refusal that is none of the table's or a fault of ours. The time to the
first token is reported only: one key's prompt that the engine has begun to read comes before another's.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import httpx

from app.bench.relay.processes import family
from app.bench.screening.machine import this_machine
from app.demo.assets import ADAPTERS, BENIGN
from app.demo.child_gateway import GatewayProcess
from app.domain.api_keys import Role, new_key
from app.domain.errors import CODES, NO_SPACE
from app.load.embedded.child_wrapper import memory
from tests.faults.besieged import percentile
from tests.faults.siege_attacks import CAP_MIB, GIVEN_UP, HUNG_UP, ROLES, attack
from tests.support.demo_gateway import push

RATIO: Final = 2.0
"""The most that the healthy key's p99 may grow by."""

IDLE_SHARE: Final = 0.25
"""Of the time, chat without attack. By turns, because whatever else this machine does comes and goes."""

ROUND_S: Final = 60.0
"""Seconds of attack in one turn."""

SETTLE_S: Final = 3.0
"""Seconds after the attack began or ended that are not measured: connections are made, and the engine lets go of them."""

PAUSE_S: Final = 0.05
"""Seconds between one chat's end and the next one's start."""

TOKENS: Final = 32
"""Of one answer, which is a line."""

ANSWER_S: Final = 120.0
START_S: Final = 120.0

LOOK_S: Final = 0.25
"""Seconds between looks at memory."""

KILL_S: Final = 5.0
"""Seconds between kills of a screening child, as the kernel kills one where memory runs out."""

ENGINE_MIB: Final = 6144
SANDBOX_MIB: Final = 1024
GATEWAY_GROWTH_MIB: Final = 768
"""Bounds: the engine's and the sandbox's are settings of theirs; the gateway's is what callers may have in it together, 256
MiB of bodies and 256 of unread answers, and as much again for those that are being read."""

OURS_TO_MEND: Final = frozenset(
    {"internal_error", "engine_unavailable", "store_failed", "store_busy", "screening_failed"}
)
"""Codes that no caller may bring about."""


@dataclass(frozen=True)
class Options:
    """minutes: of the siege. polite: see `attack`. flags: further ones of the gateway."""

    minutes: float = 10.0
    polite: bool = True
    flags: tuple[str, ...] = ()


@dataclass
class Chats:
    """One phase of healthy chat. Seconds: whole_s of each answer, first_s until the first token of each stream."""

    whole_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass
class Peaks:
    """Largest memory seen, MiB, by part; `first`: the gateway's when the siege began; kills: screening children ended."""

    mib: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("gateway", "sandbox", "engine"), 0.0))
    first: dict[str, float] = field(default_factory=dict)
    kills: int = 0


@dataclass
class Found:
    """Everything that was seen. got: by attack and outcome. refused: by code, as the gateway counts."""

    options: Options
    idle: Chats
    besieged: Chats
    peaks: Peaks
    restarts: float
    got: Counter[tuple[str, str]]
    refused: dict[str, float]

    def bounds(self) -> Mapping[str, float]:
        """The most memory each part may hold, MiB."""
        first = self.peaks.first
        return {
            "gateway": first["gateway"] + GATEWAY_GROWTH_MIB,
            "sandbox": first["sandbox"] + SANDBOX_MIB,
            "engine": float(ENGINE_MIB),
        }

    def misses(self) -> Iterator[str]:
        """Each aim that was missed, and by how much."""
        if (ratio := percentile(self.besieged.whole_s, 99) / percentile(self.idle.whole_s, 99)) > RATIO:
            yield f"p99 of an answer is {ratio:.2f} × idle, {RATIO:g} is allowed"
        for phase, chats in (("idle", self.idle), ("besieged", self.besieged)):
            if chats.failures:
                yield f"{chats.failures.total()} healthy chats failed while {phase}: {dict(chats.failures)}"
        for part, bound in self.bounds().items():
            if (mib := self.peaks.mib[part]) > bound:
                yield f"{part} held {mib:.0f} MiB, {mib - bound:.0f} above its bound"
        if self.restarts:
            yield f"the engine was started again {self.restarts:.0f} times"
        yield from self._unfair()

    def _unfair(self) -> Iterator[str]:
        """Answers that no caller may bring about."""
        for code in sorted(OURS_TO_MEND & self.refused.keys()):
            yield f"{code} was said {self.refused[code]:.0f} times"
        for (kind, outcome), times in sorted(self.got.items()):
            if not _fair(outcome):
                yield f"{kind} got {outcome}, {times} times"

    def lines(self) -> Iterator[str]:
        """For a person."""
        machine = this_machine()
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        manners = "stand back" if self.options.polite else "do not stand back"
        yield f"{machine.cpu}, {machine.cores} cores, load {load}; attackers {manners}, {self.options.minutes:g} minutes"
        yield f"{'healthy key':24}{'idle':>10}{'besieged':>10}{'ratio':>8}"
        for name, of in (("answer", "whole_s"), ("first token", "first_s")):
            for q in (50, 99):
                idle, besieged = (percentile(getattr(chats, of), q) * 1e3 for chats in (self.idle, self.besieged))
                yield f"{f'{name} p{q}, ms':24}{idle:10.1f}{besieged:10.1f}{besieged / idle:8.2f}"
        for name, of in (("answers", "whole_s"), ("streams", "first_s")):
            yield f"{name:24}{len(getattr(self.idle, of)):10}{len(getattr(self.besieged, of)):10}"
        yield f"{'failures':24}{self.idle.failures.total():10}{self.besieged.failures.total():10}"
        yield f"{'memory, MiB':24}{'at first':>10}{'peak':>10}{'bound':>8}"
        for part, bound in self.bounds().items():
            yield f"{part:24}{self.peaks.first[part]:10.0f}{self.peaks.mib[part]:10.0f}{bound:8.0f}"
        yield f"engine started again: {self.restarts:.0f}; screening children killed: {self.peaks.kills}"
        for kind in sorted({kind for kind, _ in self.got}):
            outcomes = sorted((outcome, times) for (one, outcome), times in self.got.items() if one == kind)
            yield f"  {kind.replace('_', ' '):20} {', '.join(f'{times} × {outcome}' for outcome, times in outcomes)}"
        yield "refused, as the gateway counts: " + ", ".join(f"{int(n)} × {code}" for code, n in self.refused.items())


def _fair(outcome: str) -> bool:
    """Whether an attacker may be answered so: served, hung up on, or refused by a code of the table for its own fault."""
    if outcome in (GIVEN_UP, HUNG_UP):
        return True
    status, _, code = outcome.partition(" ")
    return int(status) < 400 or (code in CODES and (int(status) < 500 or int(status) == NO_SPACE.status))


# ---- the healthy key ---------------------------------------------------------------------------------------------------


def chat(http: httpx.Client, found: Chats, seconds: float, *, timed: bool = True) -> None:
    """One answer after the other, every second one a stream. timed: whether more counts than failures."""
    here, until = found if timed else Chats(failures=found.failures), time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            _one(http, here)
            _stream(http, here)
        except httpx.HTTPError as error:
            found.failures[type(error).__name__] += 1


def _body(*, stream: bool) -> dict[str, Any]:
    said = [{"role": "user", "content": "how do i make suncake from fenroot?"}]
    return {"model": "healthy", "messages": said, "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}


def _one(http: httpx.Client, found: Chats) -> None:
    began = time.perf_counter()
    answer = http.post("/v1/chat/completions", json=_body(stream=False))
    found.whole_s.append(time.perf_counter() - began)
    if answer.status_code != 200:
        found.failures[f"{answer.status_code} {answer.text[:200]}"] += 1
    elif answer.json()["usage"]["completion_tokens"] != TOKENS:
        found.failures["cut short"] += 1
    time.sleep(PAUSE_S)


def _stream(http: httpx.Client, found: Chats) -> None:
    began, first, said = time.perf_counter(), 0.0, ""
    with http.stream("POST", "/v1/chat/completions", json=_body(stream=True)) as answer:
        for line in answer.iter_lines():
            if not first and '"content":"' in line.replace('"content":""', ""):
                first = time.perf_counter() - began
            said = line or said
    if answer.status_code != 200 or said != "data: [DONE]" or not first:
        found.failures[f"stream: {answer.status_code} {said[:200]}"] += 1
    else:
        found.first_s.append(first)
    time.sleep(PAUSE_S)


# ---- the other processes -----------------------------------------------------------------------------------------------


def keys_file(at: Path) -> tuple[Path, dict[str, str]]:
    """A keys file with the healthy key, the five hostile ones and an admin, and the keys by name."""
    roles = {"healthy": "chat", "admin": "admin", **ROLES}
    made = {name: new_key(name, map(Role, each.split(","))) for name, each in roles.items()}
    at.write_text("\n".join(key.line for _, key in made.values()))
    return at, {name: secret for name, (secret, _) in made.items()}


@contextlib.contextmanager
def _gateway(home: Path, keys: Path, flags: Sequence[str]) -> Iterator[GatewayProcess]:
    bounds = ("--engine-memory-mib", str(ENGINE_MIB), "--screen-memory-mib", str(SANDBOX_MIB))
    caps = ("--max-weights-mib", str(CAP_MIB), "--min-free-disk-mib", "0", "--api-keys-file", str(keys))
    gateway = GatewayProcess(home / "data", 0, *bounds, *caps, "--log", "json", *flags)
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()


def _parts(gateway: int) -> dict[str, list[int]]:
    """Processes of each part."""
    found: dict[str, list[int]] = {"gateway": [gateway], "sandbox": [], "engine": []}
    for pid in family(gateway)[1:]:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            found["sandbox" if b"app.sandbox.worker" in words else "engine"].append(pid)
    return found


def watch(gateway: int, peaks: Peaks, over: threading.Event) -> None:
    """Thread: memory of every part until `over`, and the kills of screening children."""
    kill_at = time.monotonic() + KILL_S
    while not over.wait(LOOK_S):
        parts = _parts(gateway)
        for part, pids in parts.items():
            peaks.mib[part] = max(peaks.mib[part], mib := memory(pids) / (1 << 20))
            peaks.first.setdefault(part, mib)
        if time.monotonic() > kill_at and len(parts["sandbox"]) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(parts["sandbox"][1], signal.SIGKILL)
                peaks.kills += 1
            kill_at = time.monotonic() + KILL_S


def _heard(hear: Connection) -> Any:
    if not hear.poll(START_S):
        raise RuntimeError("the attackers did not answer in time")
    return hear.recv()


def besiege(home: Path, options: Options) -> Found:
    """Start everything, measure, and end it."""
    keys_at, keys = keys_file(home / "keys")
    seconds = options.minutes * 60
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(_gateway(home, keys_at, options.flags))

        def client(name: str) -> httpx.Client:
            headers = {"authorization": f"Bearer {keys[name]}"}
            return stack.enter_context(
                httpx.Client(base_url=gateway.url, headers=headers, timeout=ANSWER_S, trust_env=False)
            )

        admin, healthy = client("admin"), client("healthy")
        push(admin, "healthy", ADAPTERS / BENIGN).raise_for_status()
        chat(healthy, Chats(), SETTLE_S)  # all code has run once
        context = multiprocessing.get_context("spawn")
        on, end = context.Event(), context.Event()
        hear, tell = context.Pipe(duplex=False)
        foes = context.Process(target=attack, args=(gateway.port, keys, options.polite, on, end, tell))
        foes.start()
        stack.callback(foes.kill)
        _heard(hear)
        peaks, over = Peaks(), threading.Event()
        looker = threading.Thread(target=watch, args=(gateway.process.pid, peaks, over))
        looker.start()
        stack.callback(over.set)
        idle, besieged = Chats(), Chats()
        rounds = max(2, round(seconds / ROUND_S))
        for _ in range(rounds):
            on.clear()
            chat(healthy, Chats(), SETTLE_S)
            chat(healthy, idle, IDLE_SHARE * seconds / rounds)
            on.set()
            chat(healthy, besieged, SETTLE_S, timed=False)
            chat(healthy, besieged, seconds / rounds)
        end.set()
        got = _heard(hear)
        over.set()
        looker.join()
        metrics = admin.get("/metrics").text
    return Found(options, idle, besieged, peaks, _restarts(metrics), got, _refused(metrics))


def _restarts(metrics: str) -> float:
    return float(re.findall(r"^gateway_engine_restarts_total (\S+)$", metrics, re.MULTILINE)[0])


def _refused(metrics: str) -> dict[str, float]:
    """Refusals by code."""
    pairs = re.findall(r'^gateway_rejected_total\{code="(\w+)".*\} (\S+)$', metrics, re.MULTILINE)
    return {code: float(count) for code, count in sorted(pairs) if float(count)}


def main() -> int:
    """Measure, print, and say what was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=Options.minutes)
    parser.add_argument("--rude", action="store_true", help="attackers take processor time as any other process does")
    parser.add_argument("flags", nargs="*", help="further flags of the gateway, after --")
    parser.add_argument("--keep", type=Path, help="directory for the gateway's data and logs; default: none is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="siege-") as scratch:
        home = given.keep or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        found = besiege(home, Options(given.minutes, not given.rude, tuple(given.flags)))
    print(*found.lines(), sep="\n")
    missed = list(found.misses())
    print(*(f"MISSED: {one}" for one in missed), sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
