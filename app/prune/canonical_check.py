"""Check that canonical bytes from another process have exactly the form that `canonical.py` writes.

Form only: the tensors, their shapes, dtype and order, and the configuration byte for byte. The values were measured in the
process that wrote them, except for those of experts that are only there because the engine wants all: these are zeros.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from app.domain.experts import pairs_of
from app.domain.lora import TargetModel
from app.prune.canonical import KEY_PREFIX, STORED, config_bytes, written

HEADER_BYTES: Final = 16 << 20
"""Most bytes of the header: the tensors of the largest adapter that is accepted need 13 MB."""


def check_form(config: bytes, weights: bytes, modules: tuple[str, ...], target: TargetModel) -> None:
    """Raise ValueError unless these are the canonical bytes of an adapter on exactly `modules` (sorted)."""
    length = int.from_bytes(weights[:8], "little")
    if length > HEADER_BYTES:
        raise ValueError("its header is too long")
    header = json.loads(weights[8 : 8 + length])
    everything = written(modules, target)
    pairs = pairs_of(everything)
    name, members = next(iter(pairs.items()))
    rows = header[f"{KEY_PREFIX}{name}.lora_A.weight"]["shape"][0]
    rank = rows // len(members) if type(rows) is int else 0
    if not 0 < rank <= target.max_rank:
        raise ValueError(f"its rank is {rank}")
    if config != config_bytes(everything, rank, target):
        raise ValueError("its configuration is not the canonical one")
    shapes: dict[str, tuple[int, int]] = {}
    for name, members in pairs.items():
        shape, ranks = target.modules[members[0]], rank * len(members)
        shapes[f"{KEY_PREFIX}{name}.lora_A.weight"] = (ranks, shape.d_in)
        shapes[f"{KEY_PREFIX}{name}.lora_B.weight"] = (shape.d_out, ranks)
    _check_tensors(header, shapes, target, len(weights) - 8 - length)
    served = frozenset(modules)
    for name, members in pairs.items():
        is_served = np.array([module in served for module in members])
        for side in "AB":
            key = f"{KEY_PREFIX}{name}.lora_{side}.weight"
            tensor = np.frombuffer(
                weights, f"u{STORED[target.dtype][1]}", math.prod(shapes[key]), 8 + length + _begin(header[key])
            )
            by_member = tensor.reshape(len(members), -1) if side == "A" else tensor.reshape(-1, len(members)).T
            if by_member[~is_served].any():
                raise ValueError(f"tensor {key} holds values of a module that was not measured: not zero")


def _check_tensors(
    header: dict[str, Any], shapes: Mapping[str, tuple[int, int]], target: TargetModel, size: int
) -> None:
    """Raise ValueError unless the header is that of these tensors, one after another, in so many bytes of data."""
    dtype, item = STORED[target.dtype]
    if set(header) != set(shapes):
        raise ValueError("its tensors are not those of its modules")
    end = 0
    for name, entry in sorted(header.items(), key=lambda one: _begin(one[1])):
        rows, columns = shapes[name]
        begin, end = end, end + rows * columns * item
        if entry != {"dtype": dtype, "shape": [rows, columns], "data_offsets": [begin, end]}:
            raise ValueError(f"tensor {name} is not in canonical form")
    if size != end:
        raise ValueError("its length is not that of its tensors")


def _begin(entry: Mapping[str, Any]) -> int:
    return int(entry["data_offsets"][0])
