"""The load generator, in a process of its own: so many connections, each with one request after the other.

    python -m app.bench.relay.load '{"url": …}' FILE      a Job as JSON in, a Sample as JSON into FILE

Built on a bare asyncio protocol, uvloop and httptools, because a client that costs more than what it measures measures
itself. Connections start spread over one gap, or all streams would send their tokens in the same instant.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
import uvloop

LONGEST_S: Final = 60.0
"""Seconds after which what has not ended is given up, beyond the job's own seconds."""

_SENT_AT: Final = re.compile(rb'"content":\s*"(\d{9,})"')
_TAIL: Final = 64
"""Bytes of a piece looked at again with the next one: a token's time may be cut in two."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask, how often at once, and for how long (s). gap_s: the stand-in's time between two tokens."""

    url: str
    model: str
    key: str
    stream: bool
    connections: int
    seconds: float
    tokens: int
    gap_s: float


@dataclass(slots=True)
class Sample:
    """What was seen. Times in seconds.

    request: from a request's last byte out to its answer's last byte in, without what the engine takes. first: the same
    to a stream's first token. under_way: each token's way from the engine to here. elapsed: first request to last answer.
    """

    requests: int = 0
    errors: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    said: str = ""
    request: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    under_way: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection, asking until `until` (monotonic, s)."""

    def __init__(self, job: Job, sample: Sample, until: float, done: asyncio.Future[None]) -> None:
        self._job, self._sample, self._until, self._done = job, sample, until, done
        self._ask = _request(job)
        self._began, self._tail, self._status, self._seen = 0.0, b"", 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has all of it, and another base
        self._next()

    def connection_lost(self, _: Exception | None) -> None:
        """A broken connection is an error, unless its work was done."""
        if not self._done.done():
            self._sample.errors += 1
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of an answer. Its tokens say when they were sent."""
        if not self._job.stream:
            self._tail = body
            return
        now = time.monotonic_ns()
        text = self._tail + body
        end = 0
        for found in _SENT_AT.finditer(text):
            end = found.end()
            self._sample.under_way.append((now - int(found[1])) / 1e9)
            if self._seen == 0:
                self._sample.first.append(time.monotonic() - self._began)
            self._seen += 1
        self._tail = text[max(end, len(text) - _TAIL) :]

    def on_message_complete(self) -> None:
        """An answer is whole: count it, and ask again."""
        job, sample = self._job, self._sample
        wanted = job.tokens if job.stream else 0
        if self._parser.get_status_code() == 200 and self._seen == wanted:
            sample.requests += 1
            sample.tokens += self._seen
            sample.request.append(time.monotonic() - self._began - (job.tokens - 1) * job.gap_s)
        else:
            sample.errors += 1
            sample.said = sample.said or f"{self._parser.get_status_code()} {self._tail[:200]!r}"
        if time.monotonic() < self._until:
            asyncio.get_running_loop().call_soon(self._next)  # not from within the parser
            return
        self._done.set_result(None)
        self._transport.close()

    def _next(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._seen, self._tail = 0, b""
        self._began = time.monotonic()
        self._transport.write(self._ask)


def _request(job: Job) -> bytes:
    message = {"role": "user", "content": "What is the capital of the country where the river ends?"}
    body = {"model": job.model, "messages": [message], "max_tokens": job.tokens, "temperature": 0, "stream": job.stream}
    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(job.url).netloc}\r\nauthorization: Bearer {job.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def run(job: Job) -> Sample:
    """Do the job."""
    loop, sample, place = asyncio.get_running_loop(), Sample(), urlsplit(job.url)
    began = time.monotonic()

    async def one(index: int) -> None:
        await asyncio.sleep(index / job.connections * job.gap_s)
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(
            lambda: Client(job, sample, began + job.seconds, done), place.hostname or "", place.port or 80
        )
        await done

    async with asyncio.timeout(job.seconds + LONGEST_S):
        await asyncio.gather(*map(one, range(job.connections)))
    sample.elapsed = time.monotonic() - began
    return sample


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asdict(uvloop.run(run(Job(**json.loads(sys.argv[1])))))), encoding="utf-8")
