"""Zero adapter: changes nothing, and stands in for the served model if an engine cannot mix both in one batch."""

import torch

from app.domain.lora import Adapter, LoraModule, ServingDtype, TargetModel

_DTYPES = {
    ServingDtype.FLOAT32: torch.float32,
    ServingDtype.FLOAT16: torch.float16,
    ServingDtype.BFLOAT16: torch.bfloat16,
}


def zero_adapter(target: TargetModel) -> Adapter:
    """Return an adapter of rank 1 on the target's first module, with A and B zero: ΔW = 0."""
    name = min(target.modules)
    shape = target.modules[name]
    dtype = _DTYPES[target.dtype]
    a = torch.zeros((1, shape.d_in), dtype=dtype)
    b = torch.zeros((shape.d_out, 1), dtype=dtype)
    return Adapter((LoraModule(name, a, b, scaling=1.0),), target.dtype)
