"""A checkpoint on disk: safetensors, one file or many, read tensor by tensor."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.domain.digest import Digest
from app.domain.lora import Shape
from app.errors import BAD_REFERENCE, Unavailable

INDEX: Final = "model.safetensors.index.json"
PATTERNS: Final = ("*.safetensors", INDEX, "config.json")
"""What is fetched of a hub repository: no pickles, no code."""

LINEAR: Final = re.compile(r"((?:[A-Za-z0-9_]+\.)*layers\.[0-9]+\.(?:[A-Za-z0-9_]+\.)*[a-z_]*_proj)\.weight")
"""Weights of the linear modules LoRA adapts in Llama, Mistral, Qwen, Gemma and Phi-3 (fused ones too): inside a decoder
layer, last name `…_proj`. Not embeddings, lm_head, norms; not the experts of a mixture."""

EXPERT: Final = re.compile(r"(?:^|\.)experts\.")
DTYPES: Final = frozenset({"F16", "BF16", "F32"})
CHUNK: Final = 1 << 22
"""Bytes hashed at a time."""


def fail(message: str) -> Unavailable:
    """A reference that cannot be built or opened, in the operator's words."""
    return Unavailable(BAD_REFERENCE, message)


def module_of(tensor: str) -> str | None:
    """The linear module whose weight this tensor is, or None when LoRA does not adapt it."""
    found = LINEAR.fullmatch(tensor)
    return None if found is None or EXPERT.search(tensor) else found[1]


def resolve(checkpoint: str | Path) -> Path:
    """A directory as it is, anything else as a hub id (HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold)."""
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


class Checkpoint:
    """The tensors of one checkpoint by name; opens lazily, holds one tensor at a time.

    Raises Unavailable BAD_REFERENCE naming file and tensor when a file is missing, truncated or no safetensors.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        self.path: Final = resolve(checkpoint)
        self._file_of: Final = self._scan()
        self._handles: dict[str, Any] = {}
        self.shapes: Final[dict[str, tuple[int, ...]]] = {}
        self._dtypes: Final[dict[str, str]] = {}
        for name, file in self._file_of.items():
            part = self._handle(file, name).get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            self._dtypes[name] = str(part.get_dtype())
        self.modules: Final[Mapping[str, Shape]] = {
            module: Shape(*self.shapes[name])
            for name in sorted(self.shapes)
            if (module := module_of(name)) is not None and len(self.shapes[name]) == 2
        }

    def _scan(self) -> dict[str, str]:
        """Tensor name → file name, from the index where there is one, else from the files themselves."""
        index = self.path / INDEX
        if index.is_file():
            try:
                found = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise fail(f"{index}: not a safetensors index: {error}") from error
            for name, file in found.items():
                if Path(file).name != file:
                    raise fail(f"{index}: tensor {name} lies outside the checkpoint: {file}")
            return {str(name): str(found[name]) for name in sorted(found)}
        names: dict[str, str] = {}
        for path in sorted(self.path.glob("*.safetensors")):
            for name in self._open(path).keys():  # noqa: SIM118 (not a dict)
                if name in names:
                    raise fail(f"{path}: tensor {name} is also in {names[name]}")
                names[name] = path.name
        if not names:
            raise fail(f"{self.path}: no safetensors files; pickled checkpoints are not read, convert it first")
        return dict(sorted(names.items()))

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise fail(f"{path}: {error}") from error

    def _handle(self, file: str, tensor: str) -> Any:
        if file not in self._handles:
            self._handles[file] = self._open(self.path / file)
        if tensor not in self._handles[file].keys():  # noqa: SIM118 (not a dict)
            raise fail(f"{self.path / file}: tensor {tensor} is missing")
        return self._handles[file]

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored (16- or 32-bit), memory-mapped."""
        if self._dtypes[name] not in DTYPES:
            raise fail(
                f"{self._file_of[name]}: tensor {name} is {self._dtypes[name]}; only 16- and 32-bit floats are read"
            )
        try:
            found: Tensor = self._handle(self._file_of[name], name).get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise fail(f"{self._file_of[name]}: tensor {name}: {error}") from error
        return found

    def digest(self, name: str) -> Digest:
        """SHA-256 over one tensor's dtype, shape and bytes: the same however the checkpoint is cut into files."""
        tensor = self._handle(self._file_of[name], name).get_tensor(name)
        sha = hashlib.sha256(f"{self._dtypes[name]} {self.shapes[name]}\n".encode())
        flat = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")
        for at in range(0, len(flat), CHUNK):
            sha.update(flat[at : at + CHUNK])
        return Digest(sha.hexdigest())

    def fingerprint(self) -> str:
        """Names, sizes and times of the files: whether a build may go on where it stopped."""
        stats = [(file, os.stat(self.path / file)) for file in sorted(set(self._file_of.values()))]
        return json.dumps([[file, s.st_size, s.st_mtime_ns] for file, s in stats])

    def close(self) -> None:
        """Let go of the files."""
        self._handles.clear()
