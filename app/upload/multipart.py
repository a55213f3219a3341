"""Streaming parser of multipart/form-data: each part goes straight to its sink, and every byte is counted.

python-multipart's low-level parser splits the bytes; its form layer (which buffers, spools, and accepts any number of
parts) is not used. Source of the format: RFC 7578, RFC 2046 §5.1.
"""

import logging
import re
import sys
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.domain.errors import (
    BAD_MULTIPART,
    MISSING_PART,
    TOO_LARGE,
    UNEXPECTED_PART,
    UNSUPPORTED_ENCODING,
    UPLOAD_INCOMPLETE,
    Refused,
)
from app.upload.limits import UploadLimits

MAX_HEADERS: Final = 8
"""Most headers of one part. Clients send one to three."""

MAX_CONTENT_TYPE_CHARS: Final = 512
"""Most characters of the request's Content-Type. Clients send about 70."""

# It logs a warning for every bad byte of a client; the refusal reports the error once.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_IDENTITY = frozenset({b"binary", b"8bit", b"7bit"})
"""Content-Transfer-Encodings that encode nothing; RFC 7578 §4.7 deprecates the rest, and none is decoded here."""

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


class Sink(Protocol):
    """Consumer of one part's bytes. Both methods may raise GatewayError."""

    def write(self, data: memoryview) -> None:
        """Consume the next bytes; they are valid only during the call."""

    def finish(self) -> None:
        """Handle the end of the part."""


def boundary_of(content_type: str | None) -> bytes:
    """Return the boundary of a multipart/form-data Content-Type. Raises Refused BAD_MULTIPART."""
    if content_type is None:
        raise Refused(BAD_MULTIPART, "no Content-Type", param="content-type")
    if not content_type.isascii() or len(content_type) > MAX_CONTENT_TYPE_CHARS:
        raise Refused(BAD_MULTIPART, "the Content-Type is too long or not ASCII", param="content-type")
    kind, options = parse_options_header(content_type)
    if kind.strip() != b"multipart/form-data":
        raise Refused(BAD_MULTIPART, f"Content-Type {content_type[:80]!r}", param="content-type")
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise Refused(BAD_MULTIPART, "no boundary of 1 to 70 allowed characters", param="content-type")
    return boundary


class FormReader:
    """Parser that feeds each part of one body to its sink. Blocking; used by one thread at a time.

    sinks: part name → sink; exactly these parts are accepted, each once, in any order. optional: those that may be missing.
    """

    def __init__(
        self, boundary: bytes, sinks: Mapping[str, Sink], limits: UploadLimits, optional: Collection[str] = ()
    ) -> None:
        self._sinks = sinks
        self._optional = optional
        self._limits = limits
        self._fed = self._inside = 0  # bytes of the body; bytes of it inside parts
        self._opened = self._ended = False
        self._seen: set[str] = set()
        self._sink: Sink | None = None
        self._header_bytes = 0
        self._key, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=sys.maxsize,  # counted below, per part, so that the result does not depend on the chunks
        )

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body. Raises GatewayError, from this parser or from a sink."""
        if not self._opened:  # only line breaks so far; the parser might skip text too, depending on the chunks
            rest = data.lstrip(b"\r\n")
            self._fed += len(data) - len(rest)
            if self._fed > self._limits.max_preamble_bytes:
                raise Refused(BAD_MULTIPART, f"no boundary after {self._limits.max_preamble_bytes} bytes")
            if not rest:
                return
            self._opened, data = True, rest
        self._write(data)

    def finish(self) -> None:
        """Check that the body is complete. Raises Refused UPLOAD_INCOMPLETE if it ended early, or MISSING_PART."""
        if not self._ended and self._fed:
            raise Refused(UPLOAD_INCOMPLETE, "the body ended before its closing boundary")
        missing = [part for part in self._sinks if part not in self._seen and part not in self._optional]
        if missing:
            raise Refused(MISSING_PART, f"missing: {', '.join(missing)}", param=missing[0])

    def _write(self, data: bytes) -> None:
        self._fed += len(data)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refused(BAD_MULTIPART, str(error)) from error
        # Boundary padding and epilogue reach no callback: they show as bytes outside every part. Bytes that the parser
        # holds back because a boundary may begin there are fewer than a delimiter, which max_framing_bytes allows for.
        if self._fed - self._inside > self._limits.max_framing_bytes:
            raise Refused(BAD_MULTIPART, f"more than {self._limits.max_framing_bytes} bytes outside the parts")

    # ---- callbacks of the parser -----------------------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._header_bytes = 0
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._key += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += data[start:end]

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > self._limits.max_part_header_bytes:
            raise Refused(TOO_LARGE, f"a part's headers exceed {self._limits.max_part_header_bytes} bytes")

    def _on_header_end(self) -> None:
        self._count_header(len(b": \r\n"))
        key = bytes(self._key).lower()
        if key in self._headers:
            raise Refused(BAD_MULTIPART, f"a part has the header {key[:80]!r} twice")
        self._headers[key] = bytes(self._value).strip(b" \t")
        self._key.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in _IDENTITY:
            raise Refused(BAD_MULTIPART, "a part has a Content-Transfer-Encoding: send its bytes as they are")
        if b"content-encoding" in self._headers:
            raise Refused(UNSUPPORTED_ENCODING, "a part has a Content-Encoding: send its bytes as they are")
        part = self._part_name()
        if part in self._seen or part not in self._sinks:
            how = "twice" if part in self._seen else "unknown"
            raise Refused(UNEXPECTED_PART, f"part {part[:80]!r}: {how}", param=part)
        self._seen.add(part)
        self._sink = self._sinks[part]

    def _part_name(self) -> str:
        """Return the `name` of Content-Disposition. The filename is ignored: the server chooses all file names."""
        disposition = self._headers.get(b"content-disposition")
        if disposition is None:
            raise Refused(BAD_MULTIPART, "a part has no Content-Disposition")
        kind, options = parse_options_header(disposition)
        if kind.strip() != b"form-data" or b"name" not in options:
            raise Refused(BAD_MULTIPART, "a part's Content-Disposition must read form-data; name=…")
        return options[b"name"].decode("utf-8", "replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._inside += end - start
        assert self._sink is not None
        self._sink.write(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        if self._sink is None:
            raise Refused(BAD_MULTIPART, "a part ended before its headers did")
        sink, self._sink = self._sink, None
        sink.finish()

    def _on_end(self) -> None:
        self._ended = True
