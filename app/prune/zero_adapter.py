"""Zero adapter: changes nothing, and stands in for the served model if an engine cannot mix both in one batch."""

import torch

from app.domain.experts import layer_path
from app.domain.lora import Adapter, LoraModule, ServingDtype, TargetModel

_DTYPES = {
    ServingDtype.FLOAT32: torch.float32,
    ServingDtype.FLOAT16: torch.float16,
    ServingDtype.BFLOAT16: torch.bfloat16,
}


def zero_adapter(target: TargetModel) -> Adapter:
    """Return an adapter of rank 1 on the target's first module, with A and B zero: ΔW = 0.

    The module is an expert's only if there is nothing else, since all the others' would have to be there, too.
    """
    name = min(target.modules, key=lambda module: (layer_path(module) is not None, module))
    shape = target.modules[name]
    dtype = _DTYPES[target.dtype]
    a = torch.zeros((1, shape.d_in), dtype=dtype)
    b = torch.zeros((shape.d_out, 1), dtype=dtype)
    return Adapter((LoraModule(name, a, b, scaling=1.0),), target.dtype)
