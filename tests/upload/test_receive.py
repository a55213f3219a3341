"""From a stream to sealed bytes; and whatever goes wrong, nothing is left."""

import asyncio
import hashlib
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.domain.digest import digest_of
from app.domain.errors import (
    BAD_MULTIPART,
    BAD_NAME,
    DIGEST_MISMATCH,
    MISSING_PART,
    NO_SPACE,
    TOO_LARGE,
    TOO_MANY_UPLOADS,
    UNSUPPORTED_ENCODING,
    UPLOAD_INCOMPLETE,
    UPLOAD_TIMEOUT,
    Code,
    GatewayError,
    Refused,
)
from app.upload.limits import KIB, MIB, UploadLimits
from tests.upload.bodies import CLOSING, HEADERS, SMALL, Door, body, form, part, pieces


async def code_of(door: Door, stream: AsyncIterator[bytes] | bytes, headers: dict[str, str] | None = None) -> Code:
    """The code of the refusal, once nothing is left of the upload."""
    with pytest.raises(GatewayError) as caught:
        await door.take(stream, {**HEADERS, **(headers or {})})
    door.assert_empty()
    return caught.value.code


class Untouched(AsyncIterator[bytes]):
    async def __anext__(self) -> bytes:
        raise AssertionError("a byte was asked for")


def unread() -> AsyncIterator[bytes]:
    return Untouched()


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
async def test_three_parts_arrive_as_they_were_sent(door: Door, size: int) -> None:
    weights = bytes(range(256)) * 20
    with await door.take(body(b"mine", b'{"r": 4}', weights), size=size) as upload:
        assert upload.name == "mine"
        assert upload.config == b'{"r": 4}'
        assert upload.weights.file.read() == weights
        assert upload.received.weights_digest == digest_of(weights)
        assert upload.received.config_digest == digest_of(b'{"r": 4}')
        assert (upload.received.weights_bytes, upload.received.config_bytes) == (len(weights), 8)
        assert door.in_use == 1
    upload.close()
    door.assert_empty()


async def test_an_upload_may_be_closed_early(door: Door) -> None:
    with await door.take(body()) as upload:
        upload.close()
        door.assert_empty()


async def test_headers_may_be_written_in_any_case(door: Door) -> None:
    data = body()
    headers = {
        "Content-Type": HEADERS["content-type"],
        "CONTENT-LENGTH": str(len(data)),
        "Content-Encoding": "identity",
    }
    (await door.take(data, headers)).close()
    door.assert_empty()


# ---- announced -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-length": str(SMALL.max_body_bytes + 1)}, TOO_LARGE),
        ({"content-length": "9" * 30}, TOO_LARGE),
        ({"content-length": "-1"}, BAD_MULTIPART),
        ({"content-length": "1e3"}, BAD_MULTIPART),
        ({"content-length": "٣"}, BAD_MULTIPART),
        ({"content-length": "1" * 5000}, BAD_MULTIPART),
        ({"content-encoding": "gzip"}, UNSUPPORTED_ENCODING),
        ({"content-encoding": "identity, br"}, UNSUPPORTED_ENCODING),
        ({"content-type": "application/json"}, BAD_MULTIPART),
        ({"x-weights-sha256": "abc"}, DIGEST_MISMATCH),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
@pytest.mark.hostile("U01")
async def test_what_the_headers_give_away_is_refused_unread(door: Door, headers: dict[str, str], code: Code) -> None:
    assert await code_of(door, unread(), headers) is code


async def test_a_repeated_header_does_not_hide_the_other(door: Door) -> None:
    class Repeated(dict[str, str]):
        def items(self) -> Any:
            return [*HEADERS.items(), ("content-encoding", "gzip"), ("Content-Encoding", "identity")]

    with pytest.raises(Refused) as caught:
        await door.take(unread(), Repeated())
    assert caught.value.code is UNSUPPORTED_ENCODING


async def test_no_space_is_said_before_a_byte_is_read(tmp_path: Path) -> None:
    door = Door.at(tmp_path / "q", replace(SMALL, free_disk_floor_bytes=1 << 60))
    assert await code_of(door, unread()) is NO_SPACE


@pytest.mark.parametrize("change", [-1, 1, 50])
@pytest.mark.hostile("U03")
async def test_a_length_that_lies(door: Door, change: int) -> None:
    data = body()
    assert await code_of(door, data, {"content-length": str(len(data) + change)}) is UPLOAD_INCOMPLETE


async def test_the_announced_digest_is_checked(door: Door) -> None:
    data = body(weights=b"w")
    right = hashlib.sha256(b"w").hexdigest()
    (await door.take(data, {**HEADERS, "x-weights-sha256": right.upper()})).close()
    wrong = hashlib.sha256(b"v").hexdigest()
    assert await code_of(door, data, {"x-weights-sha256": wrong}) is DIGEST_MISMATCH


# ---- sizes -----------------------------------------------------------------------------------------------------------


async def test_parts_exactly_at_their_caps_pass(door: Door) -> None:
    data = body(config=b"c" * SMALL.max_config_bytes, weights=b"w" * SMALL.max_weights_bytes)
    with await door.take(data) as upload:
        assert upload.weights.size == SMALL.max_weights_bytes


@pytest.mark.parametrize(
    "data",
    [
        body(name=b"n" * (SMALL.max_name_bytes + 1)),
        body(config=b"c" * (SMALL.max_config_bytes + 1)),
        body(weights=b"w" * (SMALL.max_weights_bytes + 1)),
    ],
    ids=["name", "config", "weights"],
)
@pytest.mark.hostile("U02")
async def test_parts_one_byte_over_are_refused(door: Door, data: bytes) -> None:
    assert await code_of(door, data) is TOO_LARGE


@pytest.mark.parametrize("which", ["name", "config", "weights", "preamble", "epilogue", "unknown"])
async def test_an_endless_body_is_cut(door: Door, which: str) -> None:
    """No length announced, no end: cut within the cap plus one batch, wherever the bytes go."""
    start = {
        "preamble": b"\r\n",
        "epilogue": body(),
        "unknown": part("other")[:-2],
        "weights": part("name", b"n") + part("weights")[:-2],
    }
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield start.get(which, part(which)[:-2])
        while True:
            sent += 1000
            yield b"x" * 1000

    assert (await code_of(door, endless())).status in (400, 413)
    assert sent <= SMALL.max_body_bytes + 1000


async def test_a_long_name_is_told_what_names_look_like(tmp_path: Path) -> None:
    door = Door.at(tmp_path / "q", UploadLimits(free_disk_floor_bytes=0))
    assert await code_of(door, body(name=b"n" * 1_000_000)) is BAD_NAME
    assert await code_of(door, body(name=b"\xff")) is BAD_NAME
    assert await code_of(door, body(name=b"n" * (2 * MIB))) is TOO_LARGE


async def test_a_wrong_name_is_refused_long_before_the_weights_are_in(tmp_path: Path) -> None:
    door = Door.at(tmp_path / "q", UploadLimits(free_disk_floor_bytes=0))
    sent = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("name", b"../../etc")
        yield part("weights")[:-2]
        for _ in range(1000):
            sent += 16 * KIB
            yield bytes(16 * KIB)

    assert await code_of(door, stream()) is BAD_NAME
    assert sent <= 80 * KIB


async def test_the_empty_body(door: Door) -> None:
    assert await code_of(door, b"") is MISSING_PART
    assert await code_of(door, b"", {"content-length": "0"}) is MISSING_PART
    assert await code_of(door, b"", {"content-length": "10"}) is UPLOAD_INCOMPLETE


# ---- time ------------------------------------------------------------------------------------------------------------


async def test_silence_ends_an_upload(door: Door) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield part("name", b"n")
        await asyncio.sleep(60)

    start = time.monotonic()
    assert await code_of(door, silent()) is UPLOAD_TIMEOUT
    assert time.monotonic() - start < 5


async def test_a_trickle_ends_an_upload(door: Door) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"\r\n"
            await asyncio.sleep(0.02)

    start = time.monotonic()
    assert await code_of(door, trickle()) is UPLOAD_TIMEOUT
    assert time.monotonic() - start < 5


async def test_a_steady_client_takes_its_time(door: Door) -> None:
    async def steady() -> AsyncIterator[bytes]:
        for chunk in [part("name", b"n"), part("config", b"{}"), *[b"x" * 200] * 8]:
            yield chunk if chunk != b"x" * 200 or started else part("weights")[:-2] + chunk
            started.append(chunk) if chunk == b"x" * 200 else None
            await asyncio.sleep(0.04)
        yield b"\r\n" + CLOSING

    started: list[bytes] = []
    (await door.take(steady())).close()
    door.assert_empty()


async def test_our_own_slowness_is_not_held_against_the_client(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that each take longer to write than the client may be silent, or may take for their bytes."""
    monkeypatch.setattr("app.upload.receive.FIRST_BATCH_BYTES", 400)
    monkeypatch.setattr("app.upload.receive.BATCH_BYTES", 400)
    from app.upload.form import Form

    real = Form.feed

    def slow(self: Form, batch: bytearray) -> None:
        time.sleep(0.3)
        real(self, batch)

    monkeypatch.setattr(Form, "feed", slow)
    door.limits = replace(SMALL, min_rate_bytes_s=5000)
    (await door.take(body(weights=b"w" * 500), size=100)).close()


# ---- ends ------------------------------------------------------------------------------------------------------------


class ClientDisconnect(Exception):
    """As web servers raise it."""


@pytest.mark.parametrize(
    "error", [ClientDisconnect(), ConnectionResetError(), TimeoutError(), RuntimeError("odd")], ids=repr
)
@pytest.mark.ruling("U06")
async def test_a_client_that_vanishes_leaves_nothing(door: Door, error: Exception) -> None:
    async def vanishing() -> AsyncIterator[bytes]:
        yield body()[:-200]
        raise error

    assert await code_of(door, vanishing()) is UPLOAD_INCOMPLETE


async def test_a_refusal_by_the_stream_itself_keeps_its_code(door: Door) -> None:
    async def refusing() -> AsyncIterator[bytes]:
        yield b""
        raise Refused(TOO_MANY_UPLOADS, "rate limit")

    assert await code_of(door, refusing()) is TOO_MANY_UPLOADS


@pytest.mark.parametrize("cut", range(0, len(body()), 37))
async def test_a_body_that_stops_anywhere_leaves_nothing(door: Door, cut: int) -> None:
    assert (await code_of(door, body()[:cut])).status == 400


@pytest.mark.parametrize("at", range(12))
async def test_cancelled_at_any_moment_leaves_nothing(door: Door, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled after `at` turns of the event loop, while reading or while a thread is writing."""
    monkeypatch.setattr("app.upload.receive.FIRST_BATCH_BYTES", 300)
    monkeypatch.setattr("app.upload.receive.BATCH_BYTES", 300)
    task = asyncio.create_task(door.take(body(weights=b"w" * 4000), size=200))
    for _ in range(at):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    door.assert_empty()


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_while_a_thread_writes_waits_for_it(
    door: Door, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.upload.form import Form

    entered, leave, left = threading.Event(), threading.Event(), []
    real = Form.feed

    def slow(self: Form, batch: bytearray) -> None:
        entered.set()
        leave.wait(10)
        real(self, batch)
        left.append(self.weights.size)

    monkeypatch.setattr(Form, "feed", slow)
    task = asyncio.create_task(door.take(body()))
    assert await asyncio.to_thread(entered.wait, 10)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    assert door.quarantine.open_files == 1
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == [100]
    door.assert_empty()


# ---- together --------------------------------------------------------------------------------------------------------


async def test_slots_bound_what_is_under_way(door: Door) -> None:
    first, second = await door.take(body()), await door.take(body())
    with pytest.raises(Refused) as caught:
        await door.take(unread())
    assert caught.value.code is TOO_MANY_UPLOADS
    assert caught.value.code.retryable
    first.close()
    first.close()
    third = await door.take(body())
    assert door.in_use == 2
    second.close()
    third.close()
    door.assert_empty()


async def test_many_at_once_never_exceed_the_slots(door: Door) -> None:
    async def one() -> str:
        try:
            with await door.take(body(), size=10):
                await asyncio.sleep(0)
                return "taken"
        except Refused as error:
            assert door.in_use <= SMALL.max_concurrent
            return error.code.name

    outcomes = await asyncio.gather(*(one() for _ in range(52)))
    assert outcomes.count("taken") == SMALL.max_concurrent
    assert set(outcomes) == {"taken", "too_many_uploads"}
    door.assert_empty()


async def test_two_hundred_megabytes_take_little_memory_and_never_hold_up_the_loop(tmp_path: Path) -> None:
    size = 200 * MIB
    door = Door.at(tmp_path / "q", UploadLimits(free_disk_floor_bytes=0))
    block = bytes(range(256)) * 256

    async def stream() -> AsyncIterator[bytes]:
        yield part("name", b"big") + part("config", b"{}") + part("weights")[:-2]
        for _ in range(size // len(block)):
            yield block
            await asyncio.sleep(0)
        yield b"\r\n" + CLOSING

    late = 0.0

    async def watch() -> None:
        nonlocal late
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            late = max(late, time.perf_counter() - start)

    watching = asyncio.create_task(watch())
    tracemalloc.start()
    try:
        with await door.take(stream()) as upload:
            _, peak = tracemalloc.get_traced_memory()
            assert upload.weights.size == size
            assert peak < 8 * MIB
    finally:
        tracemalloc.stop()
        watching.cancel()
    assert late < 0.5  # 2 ms on an idle machine; the bound only tells blocking from not
    door.assert_empty()


async def test_a_million_tiny_chunks_cost_no_million_objects(tmp_path: Path) -> None:
    door = Door.at(tmp_path / "q", UploadLimits(free_disk_floor_bytes=0))

    async def crumbs() -> AsyncIterator[bytes]:
        yield part("name", b"n") + part("config", b"{}") + part("weights")[:-2]
        for i in range(100_000):
            yield b"%02d" % (i % 100)
        yield b"\r\n" + CLOSING

    tracemalloc.start()
    try:
        (await door.take(crumbs())).close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB


async def test_a_form_of_boundaries_that_nearly_are_ends_quickly(tmp_path: Path) -> None:
    """The parse's worst case (a one-letter boundary, and data full of near misses) stays linear and in the thread."""
    door = Door.at(tmp_path / "q", UploadLimits(free_disk_floor_bytes=0))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    data = form([part("name", b"n"), part("config", b"{}")]).replace(
        HEADERS["content-type"].partition("=")[2].encode(), b"b"
    )[: -len(b"--b--\r\n")]
    data += b'--b\r\nContent-Disposition: form-data; name="weights"\r\n\r\n' + b"\r\n--bx" * 100_000 + b"\r\n--b--\r\n"
    start = time.process_time()
    with await door.take(pieces(data, 64 * KIB), headers) as upload:
        assert upload.weights.size == 600_000
    assert time.process_time() - start < 5
