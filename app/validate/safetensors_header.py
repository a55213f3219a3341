"""Parser of the safetensors header: checks the whole container before a library or a tensor reads any byte.

Layout: 8 bytes little-endian length N · N bytes JSON {name: {dtype, shape, data_offsets}} · data. Offsets count from the
end of the header. https://github.com/huggingface/safetensors#format
"""

import io
import struct
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BAD_DTYPE, BAD_SAFETENSORS, EMPTY_ADAPTER, WRONG_SHAPE, Refused
from app.validate import strict_json

MAX_HEADER_BYTES: Final = 1 << 20
"""Most bytes of the JSON header. 448 tensors need about 60 kB; the format itself allows 100 MB."""

ITEM_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of each accepted dtype."""

_LENGTH: Final = struct.Struct("<Q")
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_METADATA: Final = "__metadata__"
_OTHER_FORMATS: Final = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes them: it may hold a pickle"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"<", "an HTML or XML page"),
    (b"version ", "a git-lfs pointer instead of the file it points to"),
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Entry of one tensor. shape: (rows, columns), both at least 1. begin, end: bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, int]
    begin: int
    end: int


def read_header(file: io.BufferedIOBase) -> tuple[TensorEntry, ...]:
    """Return every tensor of the file, in the order of its bytes; together they cover the data exactly once.

    `__metadata__` is skipped unread. Raises Refused BAD_SAFETENSORS, BAD_DTYPE, WRONG_SHAPE (not 2-D) or EMPTY_ADAPTER.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise _no_header(start, f"the file has {size} bytes: too short for a safetensors header")
    length = int(_LENGTH.unpack(start)[0])
    if length > MAX_HEADER_BYTES:
        raise _no_header(start, f"header of {length} bytes, the cap is {MAX_HEADER_BYTES}")
    data_at = _LENGTH.size + length
    if data_at > size:
        raise _no_header(start, f"header of {length} bytes in a file of {size}")
    header = file.read(length)
    if not header.startswith(b"{"):
        raise _no_header(start, "the header does not begin with {")
    fields = strict_json.parse(header, max_bytes=MAX_HEADER_BYTES, code=BAD_SAFETENSORS, what="safetensors header")
    fields.pop(_METADATA, None)
    if not fields:
        raise Refused(EMPTY_ADAPTER, "the file holds no tensors")
    entries = sorted((_entry(name, value, data_at) for name, value in fields.items()), key=lambda e: (e.begin, e.end))
    _check_cover(entries, data_at, size)
    return tuple(entries)


def _no_header(start: bytes, why: str) -> Refused:
    """Build the refusal of a file that is not safetensors; it names the most common other formats."""
    what = next(
        (f"this is no safetensors file but {what}" for magic, what in _OTHER_FORMATS if start.startswith(magic)), why
    )
    return Refused(BAD_SAFETENSORS, what, param="weights")


def _entry(name: str, value: Any, data_at: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise Refused(BAD_SAFETENSORS, f"tensor {name!r} needs exactly dtype, shape and data_offsets", param=name)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise Refused(BAD_SAFETENSORS, f"tensor {name!r}: dtype is no string", param=name)
    if dtype not in ITEM_BYTES:
        raise Refused(BAD_DTYPE, f"tensor {name!r} has dtype {dtype[:16]!r}", param=name)
    if not _naturals(offsets) or len(offsets) != 2:
        raise Refused(BAD_SAFETENSORS, f"tensor {name!r}: data_offsets are no two whole numbers", param=name)
    if not _naturals(shape):
        raise Refused(BAD_SAFETENSORS, f"tensor {name!r}: shape is no list of whole numbers", param=name)
    if len(shape) != 2 or 0 in shape:
        raise Refused(WRONG_SHAPE, f"tensor {name!r} has shape {shape[:8]}: not a matrix", param=name)
    rows, columns = shape
    begin, end = offsets
    if end - begin != rows * columns * ITEM_BYTES[dtype]:
        raise Refused(BAD_SAFETENSORS, f"tensor {name!r}: {shape} {dtype} does not fill {begin}..{end}", param=name)
    return TensorEntry(name, dtype, (rows, columns), data_at + begin, data_at + end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(entries: list[TensorEntry], data_at: int, size: int) -> None:
    """Raise Refused unless the tensors cover the data without hole or overlap, up to exactly the end of the file."""
    at = data_at
    for entry in entries:
        if entry.begin != at:
            how = "overlaps the one before" if entry.begin < at else f"leaves a hole of {entry.begin - at} bytes"
            raise Refused(BAD_SAFETENSORS, f"tensor {entry.name!r} {how}", param=entry.name)
        at = entry.end
    if at != size:
        how = f"{size - at} bytes after the last tensor" if at < size else f"{at - size} bytes are missing at the end"
        raise Refused(BAD_SAFETENSORS, f"the file is not what its header says: {how}", param=entries[-1].name)
