"""Checkpoint on disk: safetensors, one file or many, read tensor by tensor.

Files are read, not mapped: mapped pages count as this process's memory, and a mapped file that shrinks kills it.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.domain.digest import Digest
from app.domain.errors import BAD_REFERENCE, Unavailable
from app.domain.experts import layer_path
from app.domain.lora import Shape
from app.domain.spellings import Spellings
from app.screen.reference.experts import STACKED_ONLY, Part, architectures, fused
from app.screen.reference.linears import NOT_SERVED, ModelClass, model_class, module_of

INDEX: Final = "model.safetensors.index.json"
PATTERNS: Final = ("*.safetensors", INDEX, "config.json", "tokenizer_config.json", "chat_template.*")
"""Files downloaded from a hub repository: weights, and files that distinguish base from aligned. No pickles, no code."""

DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
QUANTISED: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8", "I32"})
"""Dtypes of packed or scaled weights, as FP8, MXFP4, AWQ, GPTQ and bitsandbytes store them; none is read."""

CHUNK: Final = 1 << 22
"""Bytes read at a time."""


def fail(message: str) -> Unavailable:
    """Return the error for a reference that cannot be built or opened; the message is for the operator."""
    return Unavailable(BAD_REFERENCE, message)


def resolve(checkpoint: str | Path) -> Path:
    """Return a directory as it is, anything else as a hub id, downloaded (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE apply)."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if path.exists() or str(checkpoint).startswith(("/", ".", "~")) or str(checkpoint).count("/") > 1:
        raise fail(f"checkpoint {checkpoint}: not a directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=list(PATTERNS)))
    except (OSError, ValueError) as error:
        raise fail(f"checkpoint {checkpoint}: neither a directory nor to be had from the hub: {error}") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """Position of one tensor: file name, dtype in safetensors notation, shape, and its bytes begin..end in the file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """Tensors of one checkpoint by name, read in parts, from any thread.

    Raises Unavailable BAD_REFERENCE naming file and tensor if a file is missing, truncated or not safetensors.
    """

    def __init__(self, checkpoint: str | Path, like: "Checkpoint | None" = None) -> None:
        """Open a checkpoint. like: the one whose class says what this one's modules are; None: its own class."""
        self.path: Final = resolve(checkpoint)
        self._like: Final = like
        self._entries: Final = self._scan()
        self._fds: Final[dict[str, int]] = {}
        self._opening: Final = threading.Lock()
        self.shapes: Final[Mapping[str, tuple[int, ...]]] = {name: e.shape for name, e in self._entries.items()}

    @cached_property
    def model_class(self) -> ModelClass | None:
        """Class of the model, None if it is not known."""
        return model_class(self.path) if self._like is None else self._like.model_class

    @cached_property
    def modules(self) -> Mapping[str, Shape]:
        """Linear modules with their weights' shapes, by the model's class, or by their names if it is not known.

        Fused experts count as modules of their own. Raises if an expert is stored both by itself and in a fused tensor.
        """
        known = self.model_class
        found = {
            name.removesuffix(".weight"): Shape(*shape)
            for name, shape in self.shapes.items()
            if len(shape) == 2 and all(shape) and (known.holds(name) if known else module_of(name) is not None)
        }
        if self._architectures & STACKED_ONLY:
            found = {name: shape for name, shape in found.items() if layer_path(name) is None}
        for name, part in self._fused.items():
            if NOT_SERVED.search(name):
                continue
            if name in found:
                raise fail(f"{self.path}: {name} is also a part of {part.tensor}; keep one of them")
            found[name] = part.shape
        return found | {name: part.shape for name, part in self._tied.items()}

    @property
    def quantised(self) -> bool:
        """Return whether weights are stored in a form that is not read."""
        return any(entry.dtype in QUANTISED for entry in self._entries.values())

    def part(self, module: str) -> Part | None:
        """Return the position of a linear module's weight; None if there is none of that name."""
        if module in self._tied:
            return self._tied[module]
        shape = self.shapes.get(f"{module}.weight", ())
        return Part(f"{module}.weight", Shape(*shape)) if len(shape) == 2 else self._fused.get(module)

    def weight(self, module: str) -> Part:
        """Return the position of the weight of one of `modules`. Raises KeyError for any other name."""
        found = self.part(module)
        if found is None:
            raise KeyError(module)
        return found

    @property
    def left_out(self) -> tuple[str, ...]:
        """Weights of two or more dimensions outside `modules`: embeddings, routers, convolutions."""
        held = {self.weight(module).tensor for module in self.modules if module not in self._tied}
        return tuple(name for name, shape in self.shapes.items() if len(shape) > 1 and name not in held)

    @cached_property
    def _architectures(self) -> frozenset[str]:
        return architectures(self.path) if self._like is None else self._like._architectures

    @cached_property
    def _fused(self) -> Mapping[str, Part]:
        return dict(fused(self.shapes, self._architectures))

    @cached_property
    def _tied(self) -> Mapping[str, Part]:
        """A head that is tied to the embeddings, with their weight."""
        tied = None if self.model_class is None else self.model_class.tied
        if tied is None:
            return {}
        head, embedding = tied
        stored = Spellings(name.removesuffix(".weight") for name in self.shapes).find(embedding)
        shape = self.shapes.get(f"{stored}.weight", ())
        return {head: Part(f"{stored}.weight", Shape(*shape))} if len(shape) == 2 and all(shape) else {}

    def where(self, name: str) -> str:
        """Return a tensor and its file, for a message."""
        return f"{self.path / self._entries[name].file}: tensor {name}"

    def _scan(self) -> dict[str, Entry]:
        """Return every tensor, sorted by name: the index's if there is an index, else those of the files themselves."""
        index = self.path / INDEX
        if index.is_file():
            return self._indexed(index)
        found: dict[str, Entry] = {}
        for path in sorted(self.path.glob("*.safetensors")):
            for name, entry in read_header(path).items():
                if name in found:
                    raise fail(f"{path}: tensor {name} is also in {found[name].file}")
                found[name] = entry
        if not found:
            raise fail(f"{self.path}: no safetensors files; pickled checkpoints are not read, convert it first")
        return dict(sorted(found.items()))

    def _indexed(self, index: Path) -> dict[str, Entry]:
        try:
            names = {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise fail(f"{index}: not a safetensors index: {error}") from error
        headers: dict[str, dict[str, Entry]] = {}
        for name, file in sorted(names.items()):
            if Path(file).name != file:
                raise fail(f"{index}: tensor {name} lies outside the checkpoint: {file}")
            if file not in headers:
                headers[file] = read_header(self.path / file)
            if name not in headers[file]:
                raise fail(f"{self.path / file}: tensor {name} is missing")
        return {name: headers[file][name] for name, file in sorted(names.items())}

    def blocks(self, name: str, size: int = CHUNK, within: tuple[int, int] | None = None) -> Iterator[bytearray]:
        """Yield one tensor's bytes in parts of `size` bytes, the last one shorter. within: begin and end, None for all."""
        entry = self._entries[name]
        begin, end = (0, entry.end - entry.begin) if within is None else within
        for at in range(entry.begin + begin, entry.begin + end, size):
            data = bytearray(min(size, entry.begin + end - at))
            view, got = memoryview(data), 0
            while got < len(data):
                try:
                    count = os.preadv(self._fd(entry.file), [view[got:]], at + got)
                except OSError as error:
                    raise fail(f"{self.where(name)}: {error.strerror}") from error
                if count == 0:
                    raise fail(f"{self.where(name)} ends early: the file was cut short while it was read")
                got += count
            yield data

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype; raises for dtypes other than 16- and 32-bit floats."""
        kind = self._entries[name].dtype
        if kind not in DTYPES:
            what = "quantised" if kind in QUANTISED else kind
            raise fail(f"{self.where(name)} is {what}; build from the checkpoint of 16- or 32-bit floats")
        return DTYPES[kind]

    def rows(self, part: Part, rows: int, sha: "hashlib._Hash | None" = None) -> Iterator[Tensor]:
        """Yield a matrix (d_out, d_in) as stored, `rows` rows at a time, in its own memory; updates sha with the bytes.

        A transposed expert is read whole, since its rows lie apart, and yields columns of what was read.
        """
        dtype, (height, columns) = self.dtype(part.tensor), self.shapes[part.tensor][-2:]
        size = columns * dtype.itemsize
        start = (part.expert or 0) * height
        if part.transposed:
            (data,) = self.blocks(part.tensor, height * size, (start * size, (start + height) * size))
            if sha is not None:
                sha.update(data)
            whole = torch.frombuffer(data, dtype=dtype).view(height, columns)
            last = part.first + part.shape.d_out
            yield from (whole[:, at : min(at + rows, last)].T.contiguous() for at in range(part.first, last, rows))
            return
        start += part.first
        for data in self.blocks(part.tensor, rows * size, (start * size, (start + part.shape.d_out) * size)):
            if sha is not None:
                sha.update(data)
            yield torch.frombuffer(data, dtype=dtype).view(-1, columns)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor as stored, complete, in separate memory."""
        dtype, shape, entry = self.dtype(name), self.shapes[name], self._entries[name]
        parts = [torch.frombuffer(data, dtype=dtype) for data in self.blocks(name, max(entry.end - entry.begin, 1))]
        return parts[0].view(shape) if parts else torch.empty(shape, dtype=dtype)

    def hashing(self, name: str) -> "hashlib._Hash":
        """Return a SHA-256 started with a tensor's dtype and shape, for its bytes; independent of the split into files."""
        return hashlib.sha256(f"{self._entries[name].dtype} {self.shapes[name]}\n".encode())

    def digest(self, name: str) -> Digest:
        """Return the SHA-256 over one tensor's dtype, shape and bytes."""
        sha = self.hashing(name)
        for data in self.blocks(name):
            sha.update(data)
        return Digest(sha.hexdigest())

    def fingerprint(self) -> str:
        """Return an identity of the files without reading them: equal as long as none was written to or replaced.

        Includes inodes and change times: two checkpoints of one architecture have equal sizes, and archives and images set
        arbitrary modification times.
        """
        stats = [(file, os.stat(self.path / file)) for file in sorted({e.file for e in self._entries.values()})]
        return json.dumps([[file, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for file, s in stats])

    def _fd(self, file: str) -> int:
        with self._opening:
            if file not in self._fds:
                self._fds[file] = os.open(self.path / file, os.O_RDONLY)
            return self._fds[file]

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of one safetensors file; the library checks header, offsets and length before they are used."""
    try:
        with safe_open(path, framework="pt") as whole:
            names = set(whole.keys())
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            fields: dict[str, Any] = json.loads(f.read(length))
        start = 8 + length
        spans = {name: fields[name]["data_offsets"] for name in names}
        return {
            name: Entry(path.name, fields[name]["dtype"], tuple(fields[name]["shape"]), start + begin, start + end)
            for name, (begin, end) in spans.items()
        }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise fail(f"{path}: {error}") from error
