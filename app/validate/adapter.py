"""Validation of an adapter: every module paired, of the model's shapes, scaled, cast to the serving dtype, finite.

The values measured later are the values served: the scaling is multiplied into B and both factors are cast here, once,
before any measurement (a cast may turn 1e6 into infinity and 1e-8 into zero).
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from app.domain.errors import (
    BAD_SAFETENSORS,
    BAD_SCALING,
    NOT_FINITE,
    RANK_TOO_HIGH,
    UNKNOWN_MODULE,
    UNPAIRED_TENSOR,
    WRONG_SHAPE,
    GatewayError,
    Refused,
)
from app.domain.lora import Adapter, LoraModule, ServingDtype, Shape, TargetModel
from app.domain.out_of_memory import out_of_memory
from app.validate.config import AdapterConfig, read_config
from app.validate.safetensors_header import TensorEntry, read_header
from app.validate.tensor_names import Side, parse_tensor_name

KIB: Final = 1 << 10

_STORED: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SERVED: Final = {
    ServingDtype.FLOAT32: torch.float32,
    ServingDtype.FLOAT16: torch.float16,
    ServingDtype.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class ValidateLimits:
    """Limits on an adapter's configuration.

    max_scaling: largest alpha / r (or alpha / √r); PEFT users stay below 16. base_names: accepted values of
    base_model_name_or_path, None: not checked. max_config_bytes: most bytes of adapter_config.json.
    """

    max_scaling: float = 64.0
    base_names: frozenset[str] | None = None
    max_config_bytes: int = 64 * KIB

    def __post_init__(self) -> None:
        if not 0 < self.max_scaling < math.inf:
            raise ValueError(f"max_scaling must be a finite number above 0, not {self.max_scaling}")


@dataclass(frozen=True, slots=True)
class _Plan:
    """One module, fully checked except for its values."""

    module: str
    a: TensorEntry
    b: TensorEntry
    scaling: float


def validate(config: bytes, weights: io.BufferedIOBase, target: TargetModel, limits: ValidateLimits) -> Adapter:
    """Read adapter_config.json and adapter_model.safetensors as an adapter for `target`.

    weights: open for reading at any position; read tensor by tensor, so that beyond the Adapter itself no more than one
    tensor is in memory. Everything is checked before the first tensor is read. Raises Refused (every code of the stage
    `validate`), `param` naming the tensor or field; OSError if the disk fails; any error that
    `out_of_memory` recognises.
    """
    read = read_config(config, max_bytes=limits.max_config_bytes, base_names=limits.base_names)
    try:
        plans = _plan(read_header(weights), read, target, limits)
        dtype = _SERVED[target.dtype]
        modules = tuple(_load(plan, weights, dtype) for plan in plans)
    except (GatewayError, OSError):
        raise
    except Exception as error:  # fail closed: input that makes a library fail is refused
        if out_of_memory(error):
            raise
        raise Refused(BAD_SAFETENSORS, f"the weights cannot be read: {type(error).__name__}") from error
    return Adapter(modules, target.dtype)


def _plan(
    entries: tuple[TensorEntry, ...], config: AdapterConfig, target: TargetModel, limits: ValidateLimits
) -> list[_Plan]:
    """Pair the tensors and check each pair against model and configuration; sorted by module."""
    sides: dict[str, dict[Side, TensorEntry]] = {}
    for entry in entries:
        module, side = parse_tensor_name(entry.name)
        if module not in target.modules:
            raise Refused(UNKNOWN_MODULE, f"{target.name} has no adaptable module {module!r}", param=entry.name)
        sides.setdefault(module, {})[side] = entry
    _check_patterns(config, target)
    plans = []
    for module, pair in sorted(sides.items()):
        a, b = _paired(module, pair)
        _check_shapes(module, a, b, target.modules[module], config.rank_of(module), target.max_rank)
        plans.append(_Plan(module, a, b, _scaling(module, config, limits.max_scaling)))
    return plans


def _check_patterns(config: AdapterConfig, target: TargetModel) -> None:
    for field, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for module in pattern:
            if module not in target.modules:
                raise Refused(UNKNOWN_MODULE, f"{field}: {target.name} has no module {module!r}", param=field)


def _paired(module: str, pair: Mapping[Side, TensorEntry]) -> tuple[TensorEntry, TensorEntry]:
    for side in Side:
        if side not in pair:
            raise Refused(UNPAIRED_TENSOR, f"{module} has no lora_{side}", param=next(iter(pair.values())).name)
    return pair[Side.A], pair[Side.B]


def _check_shapes(module: str, a: TensorEntry, b: TensorEntry, shape: Shape, rank: int, max_rank: int) -> None:
    """Raise Refused unless a is (rank, d_in) and b is (d_out, rank), exactly."""
    rows, columns = a.shape
    if columns != shape.d_in:
        raise Refused(WRONG_SHAPE, f"{module}: lora_A is {rows}×{columns}, the module takes {shape.d_in}", param=a.name)
    if b.shape[0] != shape.d_out:
        raise Refused(
            WRONG_SHAPE, f"{module}: lora_B is {b.shape[0]}×{b.shape[1]}, the module gives {shape.d_out}", param=b.name
        )
    if b.shape[1] != rows:
        raise Refused(WRONG_SHAPE, f"{module}: lora_A has rank {rows}, lora_B {b.shape[1]}", param=b.name)
    if rows > max_rank:
        raise Refused(RANK_TOO_HIGH, f"{module} has rank {rows}, the engine takes {max_rank}", param=a.name)
    if rows != rank:
        raise Refused(WRONG_SHAPE, f"{module} has rank {rows}, adapter_config.json says {rank}", param=a.name)


def _scaling(module: str, config: AdapterConfig, most: float) -> float:
    scaling = config.scaling_of(module)
    if not 0.0 < scaling <= most:
        raise Refused(
            BAD_SCALING, f"{module}: scaling {scaling:g}; it must lie above 0 and within {most:g}", param=module
        )
    return scaling


def _load(plan: _Plan, weights: io.BufferedIOBase, dtype: torch.dtype) -> LoraModule:
    """Read, scale and cast one module: a (r, d_in), b (d_out, r)."""
    a = _served(plan.a, _tensor(plan.a, weights), dtype)
    b = _served(plan.b, _tensor(plan.b, weights).to(torch.float32).mul_(plan.scaling), dtype)
    return LoraModule(plan.module, a, b, plan.scaling)


def _tensor(entry: TensorEntry, weights: io.BufferedIOBase) -> torch.Tensor:
    """Copy one tensor's bytes into new memory, so that the file needs no alignment."""
    data = bytearray(entry.end - entry.begin)
    weights.seek(entry.begin)
    got = weights.readinto(data)
    if got != len(data):
        raise Refused(BAD_SAFETENSORS, f"tensor {entry.name!r} ends early", param=entry.name)
    return torch.frombuffer(data, dtype=_STORED[entry.dtype]).reshape(entry.shape)


def _served(entry: TensorEntry, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast, then check that the served values are finite."""
    cast = tensor.to(dtype).contiguous()
    if not bool(torch.isfinite(cast).all()):
        short = str(dtype).removeprefix("torch.")
        raise Refused(
            NOT_FINITE, f"tensor {entry.name!r} is not finite once scaled and cast to {short}", param=entry.name
        )
    return cast
