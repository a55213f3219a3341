"""Check that canonical bytes from another process have exactly the form that `canonical.py` writes.

Form only: the tensors, their shapes, dtype and order, and the configuration byte for byte. The values were measured in the
process that wrote them, except for those of experts that are only there because the engine wants all: these are zeros.
"""

import json
from typing import Final

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
    rank = header[f"{KEY_PREFIX}{modules[0]}.lora_A.weight"]["shape"][0]
    if type(rank) is not int or not 0 < rank <= target.max_rank:
        raise ValueError(f"its rank is {rank}")
    everything = written(modules, target)
    if config != config_bytes(everything, rank, target):
        raise ValueError("its configuration is not the canonical one")
    dtype, size = STORED[target.dtype]
    shapes: dict[str, list[int]] = {}
    zeros = {f"{KEY_PREFIX}{module}.lora_{side}.weight" for module in set(everything) - set(modules) for side in "AB"}
    for module in everything:
        shapes[f"{KEY_PREFIX}{module}.lora_A.weight"] = [rank, target.modules[module].d_in]
        shapes[f"{KEY_PREFIX}{module}.lora_B.weight"] = [target.modules[module].d_out, rank]
    if set(header) != set(shapes):
        raise ValueError("its tensors are not those of its modules")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
        rows, columns = shapes[name]
        begin, end = end, end + rows * columns * size
        if entry != {"dtype": dtype, "shape": [rows, columns], "data_offsets": [begin, end]}:
            raise ValueError(f"tensor {name} is not in canonical form")
        if name in zeros and weights.count(0, 8 + length + begin, 8 + length + end) != end - begin:
            raise ValueError(f"tensor {name} is of no measured module and not zero")
    if len(weights) != 8 + length + end:
        raise ValueError("its length is not that of its tensors")
