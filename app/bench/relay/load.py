"""Load generator, in a separate process: a number of connections, each with one request after the other.

    python -m app.bench.relay.load '{"url": …}' FILE      a Job as JSON in, a Sample as JSON into FILE

Built on a bare asyncio protocol, uvloop and httptools, because a client that costs more than the target it measures
measures itself. Connections start spread over one gap; otherwise all streams would send their tokens simultaneously.
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
"""Seconds, beyond the job's own, after which unfinished requests are abandoned."""

_SENT_AT: Final = re.compile(rb'"content":\s*"(\d{9,})"')
_TAIL: Final = 64
"""Bytes of a piece that are searched again with the next one: a token's timestamp may be split between two."""


@dataclass(frozen=True, slots=True)
class Job:
    """One load: target, number of connections and duration (s). gap_s: the stand-in's time between two tokens."""

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
    """Measurements of a job. Times in seconds.

    request: from a request's first byte sent to its answer's last byte received, less the engine's time. first: from the
    same moment to a stream's first token. under_way: each token's transit time from the engine to the client. elapsed:
    first request to last answer. said: the first wrong answer.
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
    """One connection that sends requests until `until` (monotonic, s)."""

    def __init__(self, job: Job, sample: Sample, until: float, done: asyncio.Future[None]) -> None:
        self._job, self._sample, self._until, self._done = job, sample, until, done
        self._ask = _request(job)
        self._began, self._tail, self._status, self._tokens_seen = 0.0, b"", 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the same methods, but another base class
        self._next()

    def connection_lost(self, _: Exception | None) -> None:
        """Count a lost connection as an error, unless its work was done."""
        if not self._done.done():
            self._sample.errors += 1
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Feed the parser (asyncio.Protocol callback)."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Process a piece of an answer. Its tokens contain their send times."""
        if not self._job.stream:
            self._tail = body
            return
        now = time.monotonic_ns()
        text = self._tail + body
        end = 0
        for found in _SENT_AT.finditer(text):
            end = found.end()
            self._sample.under_way.append((now - int(found[1])) / 1e9)
            if self._tokens_seen == 0:
                self._sample.first.append(time.monotonic() - self._began)
            self._tokens_seen += 1
        self._tail = text[max(end, len(text) - _TAIL) :]

    def on_message_complete(self) -> None:
        """Count a complete answer, and send the next request."""
        job, sample = self._job, self._sample
        wanted = job.tokens if job.stream else 0
        if self._parser.get_status_code() == 200 and self._tokens_seen == wanted:
            sample.requests += 1
            sample.tokens += self._tokens_seen
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
        self._tokens_seen, self._tail = 0, b""
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
    """Run the job and return its measurements."""
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
