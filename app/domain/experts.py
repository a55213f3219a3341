"""Experts of a mixture: in each layer that has some, a linear module for every matrix of every expert.

They are named as the hub's checkpoints and vLLM's classes name them: `model.layers.0.mlp.experts.3.gate_proj`, in Mixtral
`model.layers.0.block_sparse_moe.experts.3.w1`. vLLM packs all experts of a layer into one tensor and fails where one of
their matrices has no factors, so an adapter has all of a layer's experts or none of them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from app.domain.lora import Shape
from app.domain.spellings import common_name

_EXPERT: Final = re.compile(r"((?:.*\.)?experts)\.(0|[1-9][0-9]*)\.([A-Za-z0-9_]+)")
_MIXTRAL: Final = (".block_sparse_moe.experts", ".mlp.experts")
"""Experts of Mixtral's family: as the hub and vLLM name them, and as transformers 5 does."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """Last names of an expert's matrices: gate and up, which read the layer's input, and down, which writes its output."""

    gate: str
    up: str
    down: str


KINDS: Final = (Kinds("gate_proj", "up_proj", "down_proj"), Kinds("w1", "w3", "w2"))
"""Names in use: those of most models, and those of Mixtral's family."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Experts of one layer. path: the beginning of their names, such as `model.layers.0.mlp.experts`.

    members: the modules, by number and last name. kinds: None unless every expert has a gate, an up and a down, of the same
    shapes. width, inner: d_model and d_ff, in elements; 0 without kinds.
    """

    path: str
    members: Mapping[tuple[int, str], str]
    kinds: Kinds | None
    width: int
    inner: int

    @property
    def count(self) -> int:
        """Number of experts."""
        return 1 + max(number for number, _ in self.members)


def layer_path(module: str) -> str | None:
    """Return the path of the layer's experts that a module belongs to; None if it is not an expert's."""
    found = _EXPERT.fullmatch(module)
    return None if found is None else found[1]


def common_path(path: str) -> str:
    """Return the path that stands for all spellings of a layer's experts."""
    return common_name(path).replace(*_MIXTRAL)


def layers_of(modules: Mapping[str, Shape]) -> dict[str, Layer]:
    """Return the layers with experts, by their path."""
    found: dict[str, dict[tuple[int, str], str]] = {}
    for module in modules:
        if (parts := _EXPERT.fullmatch(module)) is not None:
            found.setdefault(parts[1], {})[int(parts[2]), parts[3]] = module
    return {path: _layer(path, members, modules) for path, members in found.items()}


def _layer(path: str, members: dict[tuple[int, str], str], modules: Mapping[str, Shape]) -> Layer:
    names = {kind for _, kind in members}
    count = 1 + max(number for number, _ in members)
    kinds = next((kinds for kinds in KINDS if {kinds.gate, kinds.up, kinds.down} == names), None)
    if kinds is None or len(members) != 3 * count:
        return Layer(path, members, None, 0, 0)
    shapes = {(kind, modules[module]) for (_, kind), module in members.items()}
    down = modules[members[0, kinds.down]]
    rows = Shape(down.d_in, down.d_out)
    if shapes != {(kinds.gate, rows), (kinds.up, rows), (kinds.down, down)}:
        return Layer(path, members, None, 0, 0)
    return Layer(path, members, kinds, down.d_out, down.d_in)


def lacking(adapted: Iterable[str], modules: Mapping[str, Shape]) -> tuple[str, ...]:
    """Return the model's modules that an engine needs beside these, sorted: the other experts' of the same layers."""
    has = frozenset(adapted)
    paths = {path for path in map(layer_path, has) if path is not None}
    if not paths:
        return ()
    return tuple(sorted(module for module in modules if module not in has and layer_path(module) in paths))
