"""Transport and upload (hostile.md U), as far as the upload room decides: the rest belongs to the API's tests."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.errors import (
    BAD_MULTIPART,
    BAD_NAME,
    DIGEST_MISMATCH,
    MISSING_PART,
    NO_SPACE,
    TOO_LARGE,
    TOO_MANY_UPLOADS,
    UNEXPECTED_PART,
    UNSUPPORTED_ENCODING,
    UPLOAD_INCOMPLETE,
    UPLOAD_TIMEOUT,
    Code,
    GatewayError,
)
from app.upload.limits import UploadLimits
from tests.upload.bodies import BOUNDARY, CLOSING, HEADERS, SMALL, Door, body, form, part, pieces

Body = bytes | AsyncIterator[bytes]
GOOD = [part("name", b"n"), part("config", b"{}"), part("weights", b"w")]


async def refused(at: Path, stream: Body, headers: dict[str, str], limits: UploadLimits = SMALL) -> Code:
    door = Door.at(at / "quarantine", limits)
    with pytest.raises(GatewayError) as caught:
        await door.take(stream, {**HEADERS, **headers})
    door.assert_empty()
    door.quarantine.close()
    return caught.value.code


async def endless(start: bytes) -> AsyncIterator[bytes]:
    yield start
    while True:
        yield b"x" * 500


async def one_byte_a_moment() -> AsyncIterator[bytes]:
    for byte in body():
        yield bytes([byte])
        await asyncio.sleep(0.01)


async def vanishing() -> AsyncIterator[bytes]:
    yield body()[:-60]
    raise ConnectionResetError


def everything_under(path: Path) -> list[str]:
    return [found.name for found in path.rglob("*")]


LENGTH = len(body())

ATTACKS: list[tuple[str, Body | None, dict[str, str], Code]] = [
    ("U01_length_over_cap", None, {"content-length": str(SMALL.max_body_bytes + 1)}, TOO_LARGE),
    ("U01_length_absurd", None, {"content-length": str(2**63)}, TOO_LARGE),
    ("U02_endless_chunked", endless(b"".join(GOOD[:2]) + part("weights")[:-2]), {}, TOO_LARGE),
    ("U03_length_lies_long", body(), {"content-length": str(LENGTH + 9)}, UPLOAD_INCOMPLETE),
    ("U03_length_lies_short", body(), {"content-length": str(LENGTH - 9)}, UPLOAD_INCOMPLETE),
    ("U04_slow_loris", one_byte_a_moment(), {}, UPLOAD_TIMEOUT),
    ("U06_client_vanishes", vanishing(), {}, UPLOAD_INCOMPLETE),
    ("U07_no_boundary", body(), {"content-type": "multipart/form-data"}, BAD_MULTIPART),
    ("U07_no_multipart", b"{}", {"content-type": "application/json"}, BAD_MULTIPART),
    ("U07_thousand_parts", form(part(f"p{i}") for i in range(1000)), {}, UNEXPECTED_PART),
    ("U07_thousand_same_parts", form(part("name", b"n") for _ in range(1000)), {}, UNEXPECTED_PART),
    ("U07_giant_part_header", form([part("name", b"n", b"X: " + b"x" * (1 << 20) + b"\r\n")]), {}, TOO_LARGE),
    ("U07_endless_part_header", endless(b"--" + BOUNDARY + b"\r\nX: "), {}, TOO_LARGE),
    ("U07_megabytes_of_preamble", b"\r\n" + b"x" * 50_000 + body(), {}, BAD_MULTIPART),
    ("U07_megabytes_of_line_breaks", b"\r\n" * 25_000 + body(), {}, BAD_MULTIPART),
    ("U07_megabytes_of_epilogue", body() + b"x" * 50_000, {}, BAD_MULTIPART),
    ("U07_megabytes_of_padding", b"--" + BOUNDARY + b" " * 50_000, {}, BAD_MULTIPART),
    ("U08_endless_text_field", endless(part("config")[:-2]), {}, TOO_LARGE),
    ("U08_endless_name", endless(part("name")[:-2]), {}, TOO_LARGE),
    ("U10_gzip", gzip.compress(body()), {"content-encoding": "gzip"}, UNSUPPORTED_ENCODING),
    ("U10_brotli", b"", {"content-encoding": "br"}, UNSUPPORTED_ENCODING),
    ("U10_gzip_twice", b"", {"content-encoding": "gzip, gzip"}, UNSUPPORTED_ENCODING),
    ("U10_base64_part", form([part("name", b"bg", b"Content-Transfer-Encoding: base64\r\n")]), {}, BAD_MULTIPART),
    ("U13_digest_wrong", body(), {"x-weights-sha256": "0" * 64}, DIGEST_MISMATCH),
    ("U18_empty_body", b"", {"content-length": "0"}, MISSING_PART),
    ("U18_empty_form", CLOSING, {}, MISSING_PART),
    ("U18_no_weights", form(GOOD[:2]), {}, MISSING_PART),
    ("N03_name_with_newline", body(b"good\n"), {}, BAD_NAME),
]


@pytest.mark.parametrize(("stream", "headers", "code"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
@pytest.mark.hostile
async def test_refused(tmp_path: Path, stream: Body | None, headers: dict[str, str], code: Code) -> None:
    """One 4xx with its code; no byte of the body read where the headers decide; nothing left."""
    touched = False

    async def never() -> AsyncIterator[bytes]:
        nonlocal touched
        touched = True
        yield b""

    found = await refused(tmp_path, never() if stream is None else stream, headers)
    assert found is code
    assert 400 <= found.status < 500
    assert not touched


@pytest.mark.ruling("U05")
async def test_u05_more_uploads_than_slots(tmp_path: Path) -> None:
    """slots + 50 at once: the rest are told to wait, and the disk never holds more than the slots' share."""
    door = Door.at(tmp_path / "quarantine")
    most = 0

    async def slow() -> AsyncIterator[bytes]:
        nonlocal most
        async for chunk in pieces(body(weights=b"w" * 5000), 500):
            most = max(most, door.quarantine.open_files)
            yield chunk

    async def one() -> str:
        try:
            with await door.take(slow()):
                return "taken"
        except GatewayError as error:
            assert error.code.retryable
            return error.code.name

    outcomes = await asyncio.gather(*(one() for _ in range(SMALL.max_concurrent + 50)))
    assert outcomes.count(TOO_MANY_UPLOADS.name) == 50
    assert most == SMALL.max_concurrent
    door.assert_empty()


@pytest.mark.parametrize("filename", ["../../etc/passwd", "/abs", "x\\y", "a%00b", "nul", "-rf"])
@pytest.mark.ruling("U09")
async def test_u09_filenames_name_nothing(tmp_path: Path, filename: str) -> None:
    door = Door.at(tmp_path / "quarantine")
    data = form([GOOD[0], GOOD[1], part("weights", b"w", filename=filename)])
    with await door.take(data) as upload:
        assert upload.weights.size == 1
        assert everything_under(tmp_path) == ["quarantine"]
    door.assert_empty()


@pytest.mark.hostile("U14")
async def test_u14_no_space_before_reading(tmp_path: Path) -> None:
    code = await refused(tmp_path, body(), {}, replace(SMALL, free_disk_floor_bytes=1 << 60))
    assert code is NO_SPACE
    assert code.status == 507
