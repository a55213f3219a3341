"""Parser of the safetensors header: checks the whole container before a library or a tensor reads any byte.

Layout: 8 bytes little-endian length N · N bytes JSON {name: {dtype, shape, data_offsets}} · data. Offsets count from the
end of the header. https://github.com/huggingface/safetensors#format
"""

import io
import struct
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BAD_DTYPE, BAD_SAFETENSORS, EMPTY_ADAPTER, WRONG_SHAPE, Refused
from app.domain.lora import MAX_MODULES
from app.validate import strict_json
from app.validate.faults import Faults
from app.validate.foreign import GIT_LFS, LFS_REMEDY, TORCH_SAVE, ZERO_3, foreign

MAX_TENSORS: Final = MAX_MODULES * 2
"""Tensors of the largest adapter that people train: two factors a module."""

MAX_HEADER_BYTES: Final = MAX_TENSORS * 224
"""Most bytes of the JSON header: a tensor's entry has 160 to 200. The format itself allows 100 MB."""

MAX_MARKS: Final = MAX_TENSORS * 12 + (1 << 16)
"""Most commas, colons and opening brackets of the header: twelve an entry, and room for the metadata. Each value follows
one of them, so this bounds the memory of the parsed header, about 100 bytes a value, before it is parsed."""

ITEM_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of each accepted dtype."""

_LENGTH: Final = struct.Struct("<Q")
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_METADATA: Final = "__metadata__"
_OTHER_FORMATS: Final = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes them (adapter_model.bin): it may hold a pickle"),
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
    (GIT_LFS, "a git-lfs pointer instead of the file it points to"),
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
    if sum(map(header.count, (b",", b":", b"{", b"["))) > MAX_MARKS:
        raise Refused(BAD_SAFETENSORS, f"the header has more values than {MAX_TENSORS} tensors need", param="weights")
    fields = strict_json.parse(header, max_bytes=MAX_HEADER_BYTES, code=BAD_SAFETENSORS, what="safetensors header")
    fields.pop(_METADATA, None)
    if not fields:
        raise Refused(EMPTY_ADAPTER, "the file holds no tensors", param="weights", remedy=ZERO_3)
    entries = _entries(fields, data_at)
    _check_cover(entries, data_at, size)
    return tuple(entries)


def _entries(fields: dict[str, Any], data_at: int) -> list[TensorEntry]:
    """Return the entries in the order of their bytes. Raises Refused for all that are wrong."""
    faults = Faults()
    entries = []
    for name, value in fields.items():
        with faults.collected("entry"):
            entries.append(_entry(name, value, data_at))
    if faults and (other := foreign(fields)) is not None:
        raise other
    faults.raise_any()
    return sorted(entries, key=lambda e: (e.begin, e.end))


def _no_header(start: bytes, why: str) -> Refused:
    """Build the refusal of a file that is not safetensors; it names the most common other formats."""
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic):
            remedy = LFS_REMEDY if magic == GIT_LFS else TORCH_SAVE if magic[:1] in b"P\x80" else None
            message = f"this is not a safetensors file but {what}"
            return Refused(BAD_SAFETENSORS, message, param="weights", remedy=remedy)
    return Refused(BAD_SAFETENSORS, why, param="weights")


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
    if shape == [0]:
        raise Refused(WRONG_SHAPE, f"tensor {name!r} has shape [0]: its values are missing", param=name, remedy=ZERO_3)
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
