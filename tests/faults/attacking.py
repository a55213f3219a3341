"""Hostile uploads, endlessly and all kinds at once: a process that attacks a gateway until it is told to stop.

Each kind is a coroutine that makes one attempt, or several, over raw connections and returns the status each was answered
with, 0 where the gateway hung up. `attack` runs all of them side by side, each again as soon as it ended.
"""

import asyncio
import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Final

from app.domain.lora import ServingDtype, Shape, TargetModel
from tests.support.adapters import Upload, raw
from tests.support.gateway import KEY
from tests.upload.bodies import BOUNDARY, HEADERS, body, form, part

SHAPES: Final[Mapping[str, Shape]] = {
    "self_attn.q_proj": Shape(512, 512),
    "self_attn.k_proj": Shape(128, 512),
    "self_attn.v_proj": Shape(128, 512),
    "mlp.down_proj": Shape(512, 1408),
}
LAYERS: Final = 4
RANK: Final = 16
CAP_MIB: Final = 8

_ENTRY: Final = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
HEADER_BOMB: Final = json.dumps({f"t{i}": _ENTRY for i in range(20_000)}).encode()[: 1 << 20]

ATTEMPT_S: Final = 20.0
"""Seconds after which the attacker itself gives up on one attempt."""

NICENESS: Final = 10
"""The attackers' own share of the processors is small: strangers bring machines of their own."""

AT_ONCE: Final = 24
"""Connections of "many at once", six times what the gateway takes."""


def shaped(served: str) -> TargetModel:
    """What the attacked gateway serves."""
    modules = {f"model.layers.{i}.{kind}": shape for i in range(LAYERS) for kind, shape in SHAPES.items()}
    return TargetModel(served, modules, ServingDtype.FLOAT32, RANK)


@dataclass(frozen=True)
class Door:
    """Where it is, and a valid upload whose bytes may be spoiled."""

    port: int
    valid: Upload
    numbers: "itertools.count[int]"

    def head(self, length: int | None, path: str = "/adapters", more: str = "", key: str = KEY) -> bytes:
        """A request's head. length None: chunked."""
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        kind = HEADERS["content-type"]
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: gateway",
            f"Authorization: Bearer {key}",
            f"Content-Type: {kind}",
            size,
        )
        return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode()

    async def send(self, *pieces: bytes, pause_s: float = 0.0) -> int:
        """Send it piece by piece; the status that comes back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    if pause_s:
                        await asyncio.sleep(pause_s)
                        if reader.at_eof() or writer.is_closing():
                            break
            line = await reader.readline()
            return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
        except ConnectionError:
            return 0
        finally:
            writer.transport.abort()  # closing would wait until the gateway has read what it never will

    async def upload(self, config: bytes, weights: bytes, path: str = "/adapters") -> int:
        """A whole form with these two parts."""
        sent = body(f"foe-{next(self.numbers)}".encode(), config, weights)
        return await self.send(self.head(len(sent), path), sent)


async def slow_body(door: Door) -> int:
    """Announced whole, sent a byte at a time; holds a place until it is thrown out."""
    return await door.send(
        door.head(1 << 20), *(bytes([byte]) for byte in form([part("name", b"n" * 1000)])), pause_s=0.1
    )


async def zip_bomb(door: Door) -> int:
    """A compressed body."""
    return await door.send(door.head(1 << 30, more="Content-Encoding: gzip\r\n"), bytes(1 << 16))


async def header_bomb(door: Door) -> int:
    """A safetensors header as long as one may be, of thousands of tensors, that breaks off."""
    return await door.upload(door.valid.config_bytes, raw(HEADER_BOMB, bytes(4)))


async def json_bomb(door: Door) -> int:
    """As deep as a configuration may be long."""
    return await door.upload(b"[" * 60_000, door.valid.weights_bytes)


async def endless(door: Door) -> int:
    """Chunked, without an end: cut at the cap."""
    start = b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="weights"\r\n\r\n'
    chunk = bytes(1 << 18)
    block = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    return await door.send(
        door.head(None), f"{len(start):x}\r\n".encode() + start + b"\r\n", *([block] * (CAP_MIB * 8))
    )


async def big_and_empty(door: Door) -> int:
    """Zeros up to the cap: received whole, then no safetensors."""
    return await door.upload(door.valid.config_bytes, bytes((CAP_MIB << 20) - 1))


async def to_be_screened(door: Door) -> int:
    """A well-formed adapter on every module, other bytes each time: all the work of the gate, nothing kept."""
    fresh = bytearray(door.valid.weights_bytes)
    fresh[-4:] = next(door.numbers).to_bytes(2, "little") + b"\0\x3f"
    return await door.upload(door.valid.config_bytes, bytes(fresh), "/screen")


async def bad_heads(door: Door) -> list[int]:
    """What is refused by its head: no key, a trick in the path, a hundred headers, an odd Host."""
    many = "".join(f"X-{i}: {'y' * 200}\r\n" for i in range(100))
    heads = [
        door.head(1 << 30, key="wrong" * 8),
        door.head(1 << 30, path="/v1/../adapters"),
        door.head(1 << 30, more=many),
        door.head(1 << 30).replace(b"Host: gateway", b"Host: a/?x="),
        door.head(1 << 40),
        b"POST /adapters HTTP/1.1\r\n" + b"A" * 100_000,
    ]
    return [await door.send(head) for head in heads]


async def many_at_once(door: Door) -> list[int]:
    """More connections than there are places, each with a name and nothing more."""
    sent = form([part("name", b"many")])
    pieces = (door.head(len(sent)), sent[:-10], sent[-10:])
    return await asyncio.gather(*(door.send(*pieces, pause_s=0.2) for _ in range(AT_ONCE)))


Kind = Callable[[Door], Awaitable[int | list[int]]]

KINDS: Final[tuple[Kind, ...]] = (
    *(slow_body, slow_body, zip_bomb, header_bomb, json_bomb, endless, big_and_empty),
    *(to_be_screened, to_be_screened, bad_heads, many_at_once),
)
"""Run side by side; one that stands here twice runs twice."""


async def _again_and_again(kind: Kind, door: Door, on: Event, told: Counter[str]) -> None:
    while True:
        if not on.is_set():
            await asyncio.sleep(0.02)
            continue
        statuses: int | list[int] = -1
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(ATTEMPT_S):
                statuses = await kind(door)
        told.update(f"{kind.__name__} {status}" for status in ([statuses] if isinstance(statuses, int) else statuses))


def _each_answered(told: Counter[str]) -> bool:
    """Return whether an attempt of each kind but slow bodies has ended: on a busy machine one may outlast the attack."""
    return {one.rpartition(" ")[0] for one in told} >= {kind.__name__ for kind in KINDS if kind is not slow_body}


async def _attack(door: Door, on: Event, end: Event) -> Counter[str]:
    told: Counter[str] = Counter()
    attackers = [asyncio.create_task(_again_and_again(kind, door, on, told)) for kind in KINDS]
    while not (end.is_set() and _each_answered(told)):
        await asyncio.sleep(0.05)
    for one in attackers:
        one.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    return told


def attack(port: int, served: str, on: Event, end: Event, tell: Connection) -> None:
    """A process: says that it is there, attacks while `on` is set, until `end`, and tells how often each kind was answered
    how.
    """
    os.nice(NICENESS)
    door = Door(port, Upload.valid(shaped(served), rank=RANK, alpha=RANK), itertools.count(1))
    tell.send(True)
    tell.send(asyncio.run(_attack(door, on, end)))
    tell.close()
