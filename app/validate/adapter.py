"""Validation of an adapter: every module paired, of the model's shapes, scaled, cast to the serving dtype, finite.

The values measured later are the values served: the scaling is multiplied into B and both factors are cast here, once,
before any measurement (a cast may turn 1e6 into infinity and 1e-8 into zero).
"""

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from app.domain.errors import (
    BAD_SAFETENSORS,
    BAD_SCALING,
    BAD_TENSOR_NAME,
    NOT_FINITE,
    RANK_TOO_HIGH,
    UNKNOWN_MODULE,
    UNPAIRED_TENSOR,
    WRONG_SHAPE,
    GatewayError,
    Refused,
)
from app.domain.experts import INNER, Layer
from app.domain.lora import Adapter, LoraModule, ServingDtype, Shape, TargetModel
from app.domain.out_of_memory import out_of_memory
from app.domain.spellings import Spellings, is_router
from app.validate.config import AdapterConfig, read_config
from app.validate.experts import Share, Stacks, check_whole, shares_of, unmeasured
from app.validate.faults import Faults
from app.validate.foreign import foreign
from app.validate.modules import unknown
from app.validate.safetensors_header import TensorEntry, read_header
from app.validate.tensor_names import NO_WHOLE_WEIGHTS, Side, head_of, parse_tensor_name, prefix_of, reason

KIB: Final = 1 << 10

_STORED: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
    """One pair of factors, fully checked except for its values. shares: the modules that it adapts, several if stacked."""

    a: TensorEntry
    b: TensorEntry
    scaling: float
    shares: list[Share]


def validate(config: bytes, weights: io.BufferedIOBase, target: TargetModel, limits: ValidateLimits) -> Adapter:
    """Read adapter_config.json and adapter_model.safetensors as an adapter for `target`.

    weights: open for reading at any position; read pair by pair, so that beyond the Adapter itself no more than a
    pair is in memory. Everything is checked before the first tensor is read. Raises Refused (every code of the
    stage `validate`), `param` naming the tensor or field and `details` every fault found; OSError if the disk fails; any
    error that `out_of_memory` recognises.
    """
    faults = Faults()
    read: AdapterConfig | None = None
    entries: tuple[TensorEntry, ...] = ()
    with faults.collected():
        read = read_config(config, max_bytes=limits.max_config_bytes, base_names=limits.base_names)
    try:
        with faults.collected():
            entries = read_header(weights)
        plans = _plan(entries, read, target, limits, faults)
        faults.raise_any()
        dtype = _SERVED[target.dtype]
        modules = sorted((one for plan in plans for one in _load(plan, weights, dtype)), key=lambda one: one.name)
    except (GatewayError, OSError):
        raise
    except Exception as error:  # fail closed: input that makes a library fail is refused
        if out_of_memory(error):
            raise
        raise Refused(BAD_SAFETENSORS, f"the weights cannot be read: {type(error).__name__}") from error
    return Adapter(tuple(modules), target.dtype)


def _plan(
    entries: tuple[TensorEntry, ...],
    config: AdapterConfig | None,
    target: TargetModel,
    limits: ValidateLimits,
    faults: Faults,
) -> list[_Plan]:
    """Pair the tensors and check each pair against model and configuration.

    config: None if it could not be read; ranks and scalings are then left unchecked. Every fault is added to `faults`.
    """
    stacks = Stacks(target.modules)
    if config is not None and config.experts and not stacks:
        faults.add(unmeasured())
    found, named = _sides(entries, target, stacks, faults)
    plans = []
    adapted: dict[str, str] = {}
    for key, sides in sorted(found.items()):
        if len(sides.factors) < len(Side) and not named:
            continue  # its other half is probably the tensor whose name is refused
        with faults.collected(key.rsplit(".", 1)[-1]):
            a, b = _paired(key, sides.factors)
            if sides.layer is None:
                _check_shapes(key, a, b, target.modules[key], target.max_rank)
                written, shares = sides.written, [Share(key, 0, target.modules[key].d_out)]
                if config is not None and config.routers and is_router(key):
                    written += ".weight"  # PEFT's patterns refer to the parameter
            else:
                parameter, shares = shares_of(sides.layer, a, b, target.max_rank)
                written = f"{sides.written.removesuffix(INNER)}.{parameter}"
            _check_apart(shares, adapted, a)
            if config is not None:
                rank = _rank(written, a.shape[0] // shares[0].count, a, config)
                plans.append(_Plan(a, b, _scaling(written, rank, config, limits.max_scaling), shares))
    if not faults:
        check_whole(adapted, target.modules)
    return plans


def _check_apart(shares: list[Share], adapted: dict[str, str], a: TensorEntry) -> None:
    """Add a pair's modules to those that are adapted. Raises Refused BAD_TENSOR_NAME if one of them already is."""
    for share in shares:
        if share.module in adapted:
            message = f"{adapted[share.module]} and {a.name} both adapt {share.module}"
            raise Refused(BAD_TENSOR_NAME, message, param=a.name, remedy=_ONE_NAME)
    adapted.update((share.module, a.name) for share in shares)


@dataclass(frozen=True, slots=True)
class _Sides:
    """One pair's factors. written: the module's name in the upload, which its configuration's patterns refer to.

    layer: of a stacked pair, the layer whose experts it adapts; None for a module's own.
    """

    written: str
    layer: Layer | None
    factors: dict[Side, TensorEntry]


def _sides(
    entries: tuple[TensorEntry, ...], target: TargetModel, stacks: Stacks, faults: Faults
) -> tuple[dict[str, _Sides], bool]:
    """Return the factors by module or stack, and whether every tensor is one; if not, the faults, or their tool's name."""
    sides: dict[str, _Sides] = {}
    found = Faults()
    prefix = prefix_of(entry.name for entry in entries)
    spellings = Spellings(target.modules)
    for entry in _without_heads(entries, prefix, target.modules, spellings, found):
        try:
            written, side = parse_tensor_name(entry.name, prefix)
        except Refused as error:
            found.add(error, reason(entry.name, prefix))
            continue
        module, layer = spellings.find(written), None
        if module is None:
            layer = stacks.find(written)
            module = None if layer is None else layer.path + (INNER if written.endswith(INNER) else "")
        if module is None:
            if not found.again(UNKNOWN_MODULE, kind := written.rsplit(".", 1)[-1]):
                found.add(unknown(written, target, entry.name), kind)
            continue
        one = sides.setdefault(module, _Sides(written, layer, {}))
        if one.written != written:
            message = f"{one.written} and {written} are two names of one module"
            found.add(Refused(BAD_TENSOR_NAME, message, param=entry.name, remedy=_ONE_NAME), "two names")
        one.factors[side] = entry
    if found:
        other = foreign(entry.name for entry in entries)
        with faults.collected():
            if other is not None:
                raise other
            found.raise_any()
    return sides, not found


def _without_heads(
    entries: tuple[TensorEntry, ...], prefix: str, modules: Mapping[str, Shape], spellings: Spellings, found: Faults
) -> Iterator[TensorEntry]:
    """Yield the tensors but for the own weights of adapted heads, which are never read: the engine has its own.

    Such a weight of another shape than the model's is a fault: the adapter was trained on another vocabulary.
    """
    names = {entry.name for entry in entries}
    for entry in entries:
        head = head_of(entry.name, prefix)
        if head is None or f"{prefix}{head}.lora_A.weight" not in names:
            yield entry
            continue
        shape = modules.get(spellings.find(head) or "")
        if shape is not None and entry.shape != (shape.d_out, shape.d_in):
            message = (
                f"{entry.name} is {entry.shape[0]}×{entry.shape[1]}, the served model's is {shape.d_out}×{shape.d_in}"
            )
            found.add(Refused(WRONG_SHAPE, message, param=entry.name, remedy=NO_WHOLE_WEIGHTS))


_ONE_NAME: Final = "Name each module in one way only, as the class that the adapter was trained on does."


def _paired(module: str, pair: Mapping[Side, TensorEntry]) -> tuple[TensorEntry, TensorEntry]:
    for side in Side:
        if side not in pair:
            raise Refused(UNPAIRED_TENSOR, f"{module} has no lora_{side}", param=next(iter(pair.values())).name)
    return pair[Side.A], pair[Side.B]


def _check_shapes(module: str, a: TensorEntry, b: TensorEntry, shape: Shape, max_rank: int) -> None:
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


def _rank(module: str, rank: int, a: TensorEntry, config: AdapterConfig) -> int:
    """Return the module's rank, which its tensors show and the configuration must allow."""
    allowed = config.ranks_of(module)
    if rank not in allowed:
        said = " or ".join(f"{one:g}" for one in sorted(allowed))
        raise Refused(WRONG_SHAPE, f"{module} has rank {rank}, adapter_config.json says {said}", param=a.name)
    return rank


def _scaling(module: str, rank: int, config: AdapterConfig, most: float) -> float:
    scaling = config.scaling_of(module, rank)
    if not 0.0 < scaling <= most:
        raise Refused(
            BAD_SCALING, f"{module}: scaling {scaling:g}; it must lie above 0 and within {most:g}", param=module
        )
    return scaling


def _load(plan: _Plan, weights: io.BufferedIOBase, dtype: torch.dtype) -> Iterator[LoraModule]:
    """Read, scale and cast one pair, and yield its modules: a (r, d_in), b (d_out, r)."""
    a = _served(plan.a, _tensor(plan.a, weights), dtype)
    b = _tensor(plan.b, weights)
    wide = torch.promote_types(b.dtype, torch.float32)
    b = _served(plan.b, b.to(wide).mul_(plan.scaling), dtype)
    if len(plan.shares) == 1:
        yield LoraModule(plan.shares[0].module, a, b, plan.scaling)
        return
    for share in plan.shares:
        its_a, its_b = share.factors(a, b)  # copied: no two modules share memory
        yield LoraModule(share.module, its_a.clone(), its_b.clone(memory_format=torch.contiguous_format), plan.scaling)


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
