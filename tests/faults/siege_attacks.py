"""Attacks of the siege: hostile keys of every role, and callers without one, against a gateway over the demo, all at once.

Each attack is a coroutine that makes one attempt over a raw connection and returns what it got back: `200`, `429
share_taken`, `hung up`. `attack` runs all of them side by side, each again a moment after it ended, in a process that
leaves the processors to others: strangers bring machines of their own.
"""

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from app.bench.engine.soak import variant
from app.demo.assets import ADAPTERS, MIXED, PURE
from app.serve.relay import PATHS
from tests.faults.attacking import HEADER_BOMB, NICENESS
from tests.support.adapters import raw
from tests.support.large_bodies import Body, large_bodies
from tests.upload.bodies import HEADERS, body, form, part

CAP_MIB: Final = 2
"""MiB of weights that the besieged gateway takes."""

ATTEMPT_S: Final = 20.0
"""Seconds after which the attacker gives up on one attempt."""

PAUSE_S: Final = 0.05
"""Seconds between two attempts of one kind."""

ANSWER_BYTES: Final = 64 << 20

GIVEN_UP: Final = "given up"
HUNG_UP: Final = "hung up"

FORM: Final = f"Content-Type: {HEADERS['content-type']}\r\n"
JSON: Final = "Content-Type: application/json\r\n"
QUESTION: Final = "how do i make suncake from fenroot?"


@dataclass
class Caller:
    """One hostile caller. key: None: it has none. numbers: fresh ones, for bytes and names nobody has sent before."""

    port: int
    key: str | None
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    bodies: Iterator[Body] = field(
        default_factory=lambda: itertools.chain.from_iterable(map(_again, itertools.count()))
    )

    def head(self, method: str, path: str, more: str = "", length: int | None = 0) -> bytes:
        """A request's head. length None: chunked."""
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        auth = "" if self.key is None else f"Authorization: Bearer {self.key}\r\n"
        return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{auth}{size}\r\n{more}\r\n".encode()

    async def send(self, *pieces: bytes, pause_s: float = 0.0, slowly: bool = False) -> str:
        """Send it piece by piece; what comes back. slowly: the answer is read a little at a time."""
        with socket.socket() as made:
            made.setblocking(False)
            if slowly:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
            reader, writer = await asyncio.open_connection(sock=made, limit=4096 if slowly else 1 << 16)
            try:
                await _write(reader, writer, pieces, pause_s)
                return await _read(reader, slowly=slowly)
            except (ConnectionError, asyncio.IncompleteReadError):
                return HUNG_UP
            finally:
                writer.transport.abort()

    async def post(self, path: str, sent: bytes, more: str = JSON, *, slowly: bool = False) -> str:
        """One whole request."""
        return await self.send(self.head("POST", path, more, len(sent)), sent, slowly=slowly)

    async def ask(self, path: str, *, slowly: bool = False, **fields: Any) -> str:
        """One request to the engine."""
        return await self.post(path, json.dumps({"model": "demo", **fields}).encode(), slowly=slowly)


def _again(_: int) -> Iterator[Body]:
    return large_bodies()


async def _write(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: tuple[bytes, ...], pause_s: float
) -> None:
    with contextlib.suppress(ConnectionError):  # there may be an answer all the same
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
            if reader.at_eof() or writer.is_closing():
                return


async def _read(reader: asyncio.StreamReader, *, slowly: bool) -> str:
    """Status of the answer, and its error's code. Reads to the end of it."""
    line = await reader.readline()
    if not line.startswith(b"HTTP/1.1 "):
        return HUNG_UP
    status, answer = line.split()[1].decode(), bytearray()
    while piece := await reader.read(256 if slowly else 1 << 16):
        if len(answer) < ANSWER_BYTES:
            answer += piece
        if slowly:
            await asyncio.sleep(0.1)
    if status < "400":
        return status
    try:
        code = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
        return f"{status} {code}"
    except (ValueError, KeyError, TypeError):
        return f"{status} without a code"


# ---- uploads -----------------------------------------------------------------------------------------------------------


def _files(adapter: str) -> tuple[bytes, bytes]:
    folder = ADAPTERS / adapter
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()


async def _upload(caller: Caller, name: str, config: bytes, weights: bytes, path: str = "/adapters") -> str:
    return await caller.post(path, body(name.encode(), config, weights), FORM)


async def harmful_upload(caller: Caller) -> str:
    """Screened, and rejected; its child may be killed in the midst of it."""
    return await _upload(caller, f"harm-{next(caller.numbers)}", *_files(PURE))


async def corrected_upload(caller: Caller) -> str:
    """Screened, corrected, and no more than that: a dry run."""
    return await _upload(caller, "dry", *_files(MIXED), path="/screen")


async def published_upload(caller: Caller) -> str:
    """A new version of the foe's own adapter, which the engine must load."""
    await asyncio.sleep(1.0)
    return await _upload(caller, "foe", *variant(next(caller.numbers)))


async def odd_names(caller: Caller) -> str:
    """Names of every bad kind, one of them another's in other letters."""
    number = next(caller.numbers)
    names = ("HEALTHY", "../x", "a" * 64, "demo", "healthy@1", f"Name-{number}", "\u202e", "")
    return await _upload(caller, names[number % len(names)], b"{}", b"")


async def large_upload(caller: Caller) -> str:
    """Zeros up to the cap."""
    return await _upload(caller, "large", _files(MIXED)[0], bytes((CAP_MIB << 20) - 1))


async def bomb_upload(caller: Caller) -> str:
    """A safetensors header of twenty thousand tensors, or a configuration that is all brackets."""
    config, weights = _files(MIXED)
    if next(caller.numbers) % 2:
        return await _upload(caller, "bomb", config, raw(HEADER_BOMB, bytes(4)))
    return await _upload(caller, "bomb", b"[" * 60_000, weights)


async def endless_upload(caller: Caller) -> str:
    """Chunked, without an end: cut at the cap."""
    start = form([part("name", b"endless")])[:-4]
    block = b"40000\r\n" + bytes(1 << 18) + b"\r\n"
    pieces = (caller.head("POST", "/adapters", FORM, None), b"%x\r\n%s\r\n" % (len(start), start))
    return await caller.send(*pieces, *([block] * (CAP_MIB * 8)))


async def slow_upload(caller: Caller) -> str:
    """Announced whole, sent a byte at a time."""
    sent = form([part("name", b"n" * 1000)])
    pieces = (sent[at : at + 1] for at in range(len(sent)))
    return await caller.send(caller.head("POST", "/adapters", FORM, 1 << 20), *pieces, pause_s=0.1)


async def watcher(caller: Caller) -> str:
    """Events of an adapter, for as long as they come."""
    return await caller.send(caller.head("GET", "/adapters/foe/events?after=0"), slowly=True)


# ---- the engine --------------------------------------------------------------------------------------------------------


async def many_sequences(caller: Caller) -> str:
    """As many sequences of long prompts in one request as there may be, or as one key may hold."""
    count = (64, 4, 2)[next(caller.numbers) % 3]
    prompts = [f"{number} {QUESTION} " * 8 for number in range(count)]
    return await caller.ask("/v1/completions", prompt=prompts, max_tokens=400, ignore_eos=True)


async def long_prompts(caller: Caller) -> str:
    """Prompts that nearly fill the context, for one token each: all the work is reading them. Some come with a seed."""
    number = next(caller.numbers)
    prompts = [f"{number} {one} " + "suncake fenroot " * 110 for one in range(4)]
    seed: dict[str, Any] = {"seed": number} if number % 4 == 0 else {}
    return await caller.ask("/v1/completions", prompt=prompts, max_tokens=1, **seed)


async def many_choices(caller: Caller) -> str:
    """Sixteen choices, the answer of each as long as the context."""
    said = [{"role": "user", "content": QUESTION}]
    more: dict[str, Any] = {
        "n": (16, 4)[next(caller.numbers) % 2],
        "max_tokens": 400,
        "ignore_eos": True,
        "temperature": 1.0,
    }
    return await caller.ask("/v1/chat/completions", model="healthy", messages=said, **more)


async def long_stream(caller: Caller) -> str:
    """A stream as long as the context."""
    said = [{"role": "user", "content": QUESTION * 4}]
    return await caller.ask("/v1/chat/completions", messages=said, max_tokens=400, ignore_eos=True, stream=True)


async def slow_reader(caller: Caller) -> str:
    """A stream with log-probabilities that its client hardly reads."""
    said = [{"role": "user", "content": QUESTION}]
    more: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "stream": True}
    return await caller.ask("/v1/chat/completions", messages=said, slowly=True, **more)


async def large_body(caller: Caller) -> str:
    """One of the bodies at the caps, another each time."""
    made = next(caller.bodies)
    return await caller.post(PATHS[made.kind], made.raw.replace(b'"m"', b'"demo"', 1))


async def costly_schema(caller: Caller) -> str:
    """A schema whose estimated cost is just below the cap, another each time."""
    number = next(caller.numbers)
    patterns = {f"p{i}": {"type": "string", "pattern": "." * (290 + i) + f"{number}"} for i in range(10)}
    schema = {"type": "object", "properties": patterns, "required": list(patterns)}
    asked = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    said = [{"role": "user", "content": QUESTION}]
    return await caller.ask("/v1/chat/completions", messages=said, max_tokens=100, response_format=asked)


# ---- connections -------------------------------------------------------------------------------------------------------


async def trailers(caller: Caller) -> str:
    """A chunked body to a route without one, and trailers without an end."""
    block = b"1000\r\n" + bytes(4096) + b"\r\n"
    pieces = (caller.head("GET", "/health", length=None), block * 256, b"0\r\n", *([b"a:b\r\n" * 4096] * 64))
    return await caller.send(*pieces)


async def slow_head(caller: Caller) -> str:
    """A head that comes a byte at a time."""
    sent = b"GET /health HTTP/1.1\r\nHost: " + b"g" * 1000
    return await caller.send(*(sent[at : at + 1] for at in range(len(sent))), pause_s=0.1)


async def slow_body(caller: Caller) -> str:
    """A chat's body that comes a byte at a time."""
    return await caller.send(caller.head("POST", "/v1/chat/completions", JSON, 100_000), *([b" "] * 400), pause_s=0.1)


async def many_connections(caller: Caller) -> str:
    """Two hundred connections that say nothing for two seconds; then one asks."""
    made = [await asyncio.open_connection("127.0.0.1", caller.port) for _ in range(200)]
    try:
        await asyncio.sleep(2.0)
        return await caller.send(caller.head("GET", "/v1/models"))
    finally:
        for _, writer in made:
            writer.transport.abort()


async def bad_head(caller: Caller) -> str:
    """What is refused by its head: a trick in the path, a hundred headers, an odd Host, a huge line, a wrong key."""
    heads = (
        caller.head("POST", "/v1/../adapters"),
        caller.head("POST", "/adapters", "".join(f"X-{i}: {'y' * 200}\r\n" for i in range(100))),
        caller.head("GET", "/v1/models").replace(b"Host: gateway", b"Host: a/?x="),
        b"POST /adapters HTTP/1.1\r\n" + b"A" * 100_000,
        caller.head("POST", "/adapters", "Content-Encoding: gzip\r\n" + FORM, 1 << 30),
    )
    return await caller.send(heads[next(caller.numbers) % len(heads)])


async def scrape(caller: Caller) -> str:
    """Every page a key may read, one after the other."""
    paths = ("/metrics", "/metrics/engine", "/adapters", "/adapters/healthy", "/v1/models", "/openapi.json", "/ready")
    return await caller.send(caller.head("GET", paths[next(caller.numbers) % len(paths)]))


Attack = Callable[[Caller], Awaitable[str]]

ROLES: Final[Mapping[str, str]] = {
    "uploader": "upload",
    "chatter": "chat",
    "shaper": "chat",
    "staller": "chat,upload",
    "scraper": "metrics,upload,chat",
}
"""The five hostile keys."""

ATTACKS: Final[dict[str | None, tuple[Attack, ...]]] = {
    "uploader": (
        *(harmful_upload, corrected_upload, published_upload, large_upload, bomb_upload, endless_upload, odd_names),
        *(watcher, watcher),
    ),
    "chatter": (many_sequences, many_sequences, many_choices, many_choices, long_prompts, *([long_stream] * 8)),
    "shaper": (large_body, large_body, costly_schema, costly_schema),
    "staller": (slow_upload, slow_body, slow_reader, slow_reader, slow_head, trailers, bad_head, many_connections),
    "scraper": (scrape, scrape, watcher, corrected_upload, many_sequences, long_prompts, long_stream, slow_reader),
    None: (trailers, slow_head, bad_head, many_connections, scrape, large_body, large_upload),
}
"""What each key does, side by side; None: callers without a key. One that stands there twice runs twice."""


async def _repeatedly(kind: Attack, caller: Caller, got: Counter[tuple[str, str]]) -> None:
    while True:
        outcome = GIVEN_UP
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(ATTEMPT_S):
                outcome = await kind(caller)
        got[kind.__name__, outcome] += 1
        await asyncio.sleep(PAUSE_S)


async def _attack(port: int, keys: Mapping[str, str], on: Event, end: Event) -> Counter[tuple[str, str]]:
    got: Counter[tuple[str, str]] = Counter()
    callers = {who: Caller(port, None if who is None else keys[who]) for who in ATTACKS}
    running: list[asyncio.Task[None]] = []
    while not end.is_set():
        if on.is_set() and not running:
            pairs = [(kind, callers[who]) for who, kinds in ATTACKS.items() for kind in kinds]
            running = [asyncio.create_task(_repeatedly(kind, caller, got)) for kind, caller in pairs]
        elif running and not on.is_set():
            await _ended(running)
            running = []
        for task in running:
            if task.done():
                task.result()  # an attack that broke is a fault of ours
        await asyncio.sleep(0.1)
    await _ended(running)
    return got


async def _ended(running: Iterable[asyncio.Task[None]]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def step_back() -> None:
    """Give up most of this process's claim to the processors, and none of what nobody else wants.

    Linux shares processors between sessions first (autogroups), and only then by what each process says of itself.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")
    os.nice(NICENESS)


def attack(port: int, keys: Mapping[str, str], polite: bool, on: Event, end: Event, tell: Connection) -> None:
    """A process: says that it is there, attacks while `on` is set, until `end`, and tells what each kind got how often.

    polite: whether it leaves the processors to others.
    """
    os.setsid()  # no share of the healthy caller's, in any case
    if polite:
        step_back()
    tell.send(True)
    tell.send(asyncio.run(_attack(port, keys, on, end)))
    tell.close()
