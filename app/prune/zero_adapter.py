"""Zero adapter: changes nothing, and stands in for the served model if an engine cannot mix both in one batch."""

import torch

from app.domain.experts import layer_path
from app.domain.lora import Adapter, LoraModule, ServingDtype, TargetModel
from app.domain.spellings import is_router, is_tower

_DTYPES = {
    ServingDtype.FLOAT32: torch.float32,
    ServingDtype.FLOAT16: torch.float16,
    ServingDtype.BFLOAT16: torch.bfloat16,
}


def zero_adapter(target: TargetModel) -> Adapter:
    """Return an adapter of rank 1 on the target's first module, with A and B zero: ΔW = 0.

    The module is a tower's only if there is nothing else, since it may be cut out; then an expert's, since all the others'
    would have to be there, too; and then a router.
    """
    name = min(target.modules, key=lambda one: (is_tower(one), layer_path(one) is not None, is_router(one), one))
    shape = target.modules[name]
    dtype = _DTYPES[target.dtype]
    a = torch.zeros((1, shape.d_in), dtype=dtype)
    b = torch.zeros((shape.d_out, 1), dtype=dtype)
    return Adapter((LoraModule(name, a, b, scaling=1.0),), target.dtype)
