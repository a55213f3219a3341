"""Experts' factors in an upload: by expert, or stacked as PEFT writes `target_parameters`, and then taken apart.

PEFT (`lora.ParamWrapper`) keeps one pair for a parameter of E experts (domain/experts.py):
ΔW_e = s·B[:, e::E]·A[e·r:(e + 1)·r]. Of a layer's two parameters one pair is named `….experts`, the other
`….experts.base_layer`; their shapes tell which is which. If gate and up are modules of their own, the gate has the first
half of gate_up_proj's rows, the up the second; both have its A.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from app.domain.errors import RANK_TOO_HIGH, UNPAIRED_TENSOR, UNSUPPORTED_CONFIG, WRONG_SHAPE, Refused
from app.domain.experts import INNER, Layer, common_path, lacking, layer_path, layers_of
from app.domain.lora import Shape
from app.validate.safetensors_header import TensorEntry


@dataclass(frozen=True, slots=True)
class Share:
    """One module's share of a pair: all of a plain one; of a stacked one an expert's ranks, d_out rows from `first` on."""

    module: str
    first: int
    d_out: int
    expert: int = 0
    count: int = 1

    def factors(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this share of a (count·r, d_in) and b (rows, r·count): (r, d_in) and (d_out, r), views."""
        mine = b.reshape(len(b), -1, self.count)[self.first : self.first + self.d_out, :, self.expert]
        return a.reshape(self.count, -1, a.shape[1])[self.expert], mine


class Stacks:
    """Layers of a model whose experts may come stacked. A spelling that would fit two layers fits neither."""

    def __init__(self, modules: Mapping[str, Shape]) -> None:
        self._layers: dict[str, Layer | None] = {}
        for path, layer in layers_of(modules).items():
            common = common_path(path)
            self._layers[common] = None if common in self._layers or layer.kinds is None else layer

    def __bool__(self) -> bool:
        """Return whether the model has such a layer."""
        return any(layer is not None for layer in self._layers.values())

    def find(self, written: str) -> Layer | None:
        """Return the layer whose experts' stacked pair has this name in an upload; None if it is no such name."""
        return self._layers.get(common_path(written.removesuffix(INNER)))


def shares_of(layer: Layer, a: TensorEntry, b: TensorEntry, max_rank: int) -> tuple[str, list[Share]]:
    """Return the parameter that a stacked pair adapts, and its share for each of the layer's modules.

    Raises Refused WRONG_SHAPE unless the shapes are those of one of the parameters, RANK_TOO_HIGH.
    """
    kinds, count = layer.kinds, layer.count
    if kinds is None:
        raise ValueError(f"{layer.path}: no layer whose experts can come stacked")
    (ranks, d_in), (d_out, columns) = a.shape, b.shape
    gate_up = ((kinds.gate, 0),) if kinds.joint else ((kinds.gate, 0), (kinds.up, layer.inner))
    parameters: dict[tuple[int, int], tuple[str, tuple[tuple[str, int], ...]]] = {
        (layer.width, 2 * layer.inner): ("gate_up_proj", gate_up),
        (layer.inner, layer.width): ("down_proj", ((kinds.down, 0),)),
    }
    if (d_in, d_out) not in parameters:
        takes = " or ".join(f"{name}: {into} to {out}" for (into, out), (name, _) in parameters.items())
        raise Refused(WRONG_SHAPE, f"{layer.path}: the factors map {d_in} to {d_out}; it takes {takes}", param=a.name)
    if ranks != columns or ranks % count:
        why = f"{layer.path}: lora_A has {ranks} rows, lora_B {columns} columns; both must be r for each of {count} experts"
        raise Refused(WRONG_SHAPE, why, param=a.name)
    name, parts = parameters[d_in, d_out]
    if ranks // count > max_rank:
        why = f"{layer.path}.{name} has rank {ranks // count}, the engine takes {max_rank}"
        raise Refused(RANK_TOO_HIGH, why, param=a.name)
    rows = d_out // len(parts)
    return name, [
        Share(layer.members[expert, kind], first, rows, expert, count)
        for expert in range(count)
        for kind, first in parts
    ]


def check_whole(adapted: Iterable[str], modules: Mapping[str, Shape]) -> None:
    """Raise Refused UNPAIRED_TENSOR if an upload adapts some of a layer's experts' matrices, but not all."""
    missing = lacking(adapted, modules)
    if missing:
        raise Refused(
            UNPAIRED_TENSOR,
            f"{layer_path(missing[0])}: some matrices are adapted, {missing[0]} is not; the engine takes all of a layer's "
            "experts or none",
            param=missing[0],
            remedy="Train on gate, up and down of all of a layer's experts (target_parameters gate_up_proj and down_proj), "
            "or of none; or add factors of zeros.",
        )


def unmeasured() -> Refused:
    """Return the refusal of experts' parameters for a model whose reference measures no experts."""
    return Refused(
        UNSUPPORTED_CONFIG,
        "target_parameters: the reference measures no experts of this model",
        param="target_parameters",
        remedy="Train on linear modules, or ask the operator for a reference with experts, built from checkpoints that are "
        "not quantised.",
    )
