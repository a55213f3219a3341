"""`reference.json`: description of a reference. Its SHA-256 is the reference's digest."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from app.domain.digest import Digest
from app.domain.lora import Shape
from app.screen.reference.checkpoint import fail

MANIFEST: Final = "reference.json"
FORMAT: Final = 2
READABLE: Final = (1, 2)
"""Formats that are read: references of format 1 hold as many outputs as triples, and the same number in every module."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of the reference: its name in the directory, SHA-256 and size in bytes."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """Properties of one module's V = W_aligned − W_base, as stored.

    v_norm: ‖V‖_F; 0 if base and aligned are identical there (nothing can be measured). s1: ‖V‖₂. lambda_max: largest
    eigenvalue of C, s₁²/‖V‖_F. c_norm: ‖C‖_F. rounding: ‖V − V_stored‖_F/‖V‖_F of the storage dtype. top_k: triples kept.
    triples_error: their largest residual, as a share of s₁. nodes, counts: quadrature of the eigenvalues of (C' − I)²
    (spectrum.py). v, triples: the files, None if left out. outputs: number of triples whose left vectors are kept.
    """

    name: str
    d_out: int
    d_in: int
    v_norm: float
    s1: float
    lambda_max: float
    c_norm: float
    rounding: float
    top_k: int
    triples_error: float
    nodes: tuple[float, ...]
    counts: tuple[float, ...]
    v: FileInfo | None
    triples: FileInfo | None
    outputs: int

    @property
    def shape(self) -> Shape:
        """The weight's shape."""
        return Shape(self.d_out, self.d_in)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of reference.json.

    base, aligned: digests of the two checkpoints (over all their tensors). dtype: storage dtype of V; every module records
    its rounding error (`rounding`). top_k: most triples kept of a module. left_out: weights on which a LoRA is refused
    (embeddings, experts, weights excluded by a glob).
    """

    base: Digest
    aligned: Digest
    dtype: str
    top_k: int
    compact: bool
    modules: Mapping[str, ModuleInfo]
    left_out: tuple[str, ...] = ()


def module_json(info: ModuleInfo) -> dict[str, Any]:
    """Return one module as plain JSON values."""
    return asdict(info)


def module_from(fields: Mapping[str, Any]) -> ModuleInfo:
    """Reverse `module_json`. Raises TypeError, KeyError or ValueError on anything else."""
    files = {key: None if fields[key] is None else FileInfo(**fields[key]) for key in ("v", "triples")}
    rows = {key: tuple(float(x) for x in fields[key]) for key in ("nodes", "counts")}
    info = ModuleInfo(**{"outputs": fields["top_k"], **fields, **files, **rows})
    numbers = (info.v_norm, info.s1, info.lambda_max, info.c_norm, info.rounding, *info.nodes, *info.counts)
    if not all(math.isfinite(x) for x in numbers):
        raise ValueError(f"module {info.name} has a number that is not finite")
    return info


def dump(manifest: Manifest) -> bytes:
    """Return the bytes of reference.json: the same for equal manifests."""
    fields = {
        "format": FORMAT,
        "base": str(manifest.base),
        "aligned": str(manifest.aligned),
        "dtype": manifest.dtype,
        "top_k": manifest.top_k,
        "compact": manifest.compact,
        "left_out": list(manifest.left_out),
        "modules": [module_json(manifest.modules[name]) for name in sorted(manifest.modules)],
    }
    return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse(data: bytes) -> Manifest:
    """Reverse `dump`. Raises Unavailable BAD_REFERENCE if the format is unknown or something is missing."""
    try:
        fields = json.loads(data)
        if fields["format"] not in READABLE:
            known = f"up to {FORMAT}; rebuild the reference, or use a newer gateway"
            raise fail(f"{MANIFEST}: format {fields['format']!r}, this gateway reads {known}")
        modules = [module_from(m) for m in fields["modules"]]
        head = {key: fields[key] for key in ("dtype", "top_k", "compact")}
        by_name = {m.name: m for m in modules}
        left_out = tuple(
            str(name) for name in fields.get("left_out", ())
        )  # absent in references built before this field existed
        return Manifest(Digest(fields["base"]), Digest(fields["aligned"]), modules=by_name, left_out=left_out, **head)
    except (ValueError, KeyError, TypeError) as error:
        raise fail(f"{MANIFEST}: not readable ({type(error).__name__}: {error}); rebuild the reference") from error
