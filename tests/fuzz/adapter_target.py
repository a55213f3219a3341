"""Fuzz target of an adapter's tensors: names and shapes as JSON, written as a sound safetensors file and validated."""

import io
import json
from typing import Any, Final

from app.domain.errors import CODES, GatewayError, Refused, Stage
from app.domain.experts import lacking
from app.domain.lora import ServingDtype, Shape, TargetModel
from app.domain.printable import MESSAGE_LIMIT
from app.validate.adapter import ValidateLimits, validate

MOST_TENSORS: Final = 32
MOST_VALUES: Final = 256

STACKED, ALONE = "model.layers.0.mlp.experts", "model.layers.1.mlp.experts"
MODULES: Final = {
    "model.layers.0.self_attn.q_proj": Shape(4, 4),
    "model.layers.0.block_sparse_moe.gate": Shape(2, 4),
    "lm_head": Shape(6, 4),
    **{f"{STACKED}.{expert}.gate_up_proj": Shape(6, 4) for expert in range(2)},
    **{f"{STACKED}.{expert}.down_proj": Shape(4, 3) for expert in range(2)},
    **{f"{ALONE}.{expert}.{kind}_proj": Shape(3, 4) for expert in range(2) for kind in ("gate", "up")},
    **{f"{ALONE}.{expert}.down_proj": Shape(4, 3) for expert in range(2)},
}
TARGET: Final = TargetModel("served", MODULES, ServingDtype.FLOAT32, 4)
CONFIG: Final = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "rank_pattern": {".*": 1}}).encode()


def file_of(tensors: list[Any]) -> bytes | None:
    """A file of zeros with these names and shapes; None if they are not such a list, or one that is too long."""
    header: dict[str, Any] = {}
    end = 0
    for tensor in tensors[:MOST_TENSORS]:
        if not isinstance(tensor, list) or len(tensor) != 3 or not isinstance(tensor[0], str):
            return None
        name, *shape = tensor
        if not all(type(side) is int and 0 < side <= MOST_VALUES for side in shape):
            return None
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    if len(header) != len(tensors[:MOST_TENSORS]) or end > 4 * MOST_VALUES * MOST_TENSORS:
        return None
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def adapter(data: bytes) -> None:
    """Validate such a file: a refusal of the stage's table, or modules of the model, each in its shape, layers whole."""
    try:
        tensors = json.loads(data)
    except (ValueError, RecursionError):
        return
    file = file_of(tensors) if isinstance(tensors, list) else None
    if file is None:
        return
    try:
        found = validate(CONFIG, io.BytesIO(file), TARGET, ValidateLimits())
    except GatewayError as error:
        assert isinstance(error, Refused)
        assert CODES[error.code.name] is error.code
        assert error.code.stage is Stage.VALIDATE
        assert len(error.message) <= MESSAGE_LIMIT
        assert error.message.isprintable()
        return
    names = [module.name for module in found.modules]
    assert names == sorted(set(names))
    assert names
    assert not lacking(names, MODULES)
    for module in found.modules:
        shape = MODULES[module.name]
        assert module.a.shape == (module.rank, shape.d_in)
        assert module.b.shape == (shape.d_out, module.rank)
        assert module.rank in (1, 2)
    heads = [name for name, *_ in tensors[:MOST_TENSORS] if name.endswith("lm_head.base_layer.weight")]
    assert not heads or "lm_head" in names
