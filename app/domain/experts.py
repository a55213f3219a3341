"""Experts of a mixture: in each layer that has some, a linear module for every matrix of every expert.

They are named as the hub's checkpoints and vLLM's classes name them: `model.layers.0.mlp.experts.3.gate_proj`, in Mixtral
`model.layers.0.block_sparse_moe.experts.3.w1`. vLLM packs all experts of a layer into one tensor and fails where one of
their matrices has no factors, so an adapter has all of a layer's experts or none of them.

Some classes' experts it reads from stacked tensors only, with one A for gate and up. There both are one module of each
expert, `model.layers.0.mlp.experts.3.gate_up_proj`, and all experts' factors of a matrix are one pair in a file, as PEFT
stacks them: A (E·r, d_in), expert after expert, and B (d_out, r·E), in which expert e has the columns e, E + e, 2·E + e, …
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
    """Last names of an expert's matrices: gate and up, which read the layer's input, and down, which writes its output.

    Gate and up have the same name if they are one matrix.
    """

    gate: str
    up: str
    down: str

    @property
    def joint(self) -> bool:
        """True if gate and up are one matrix."""
        return self.gate == self.up


STACKED: Final = Kinds("gate_up_proj", "gate_up_proj", "down_proj")
"""Names in classes whose experts an engine reads from stacked tensors only."""

KINDS: Final = (Kinds("gate_proj", "up_proj", "down_proj"), Kinds("w1", "w3", "w2"), STACKED)
"""Names in use: those of most models, those of Mixtral's family, and stacked ones."""

INNER: Final = ".base_layer"
"""End of the name of the inner one of a layer's two stacked pairs; the outer one has the layer's own path."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Experts of one layer. path: the beginning of their names, such as `model.layers.0.mlp.experts`.

    members: the modules, by number and last name. kinds: None unless every expert has a gate, an up and a down, of the same
    shapes in all. width, inner: d_model and d_ff, in elements; 0 without kinds.
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
    if kinds is None or len(members) != len(names) * count:
        return Layer(path, members, None, 0, 0)
    shapes = {(kind, modules[module]) for (_, kind), module in members.items()}
    down = modules[members[0, kinds.down]]
    rows = Shape(down.d_in * (2 if kinds.joint else 1), down.d_out)
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


def pairs_of(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the pairs of factors that a file holds of these modules, sorted by name: stacked ones have an expert each."""
    every = tuple(modules)
    stacked = {found[1] for found in map(_EXPERT.fullmatch, every) if found and found[3] == STACKED.gate}
    pairs: dict[str, list[tuple[int, str]]] = {}
    for module in every:
        found = _EXPERT.fullmatch(module)
        if found is None or found[1] not in stacked:
            pairs[module] = [(0, module)]
        else:
            name = found[1] + (INNER if found[3] == STACKED.gate else "")
            pairs.setdefault(name, []).append((int(found[2]), module))
    return {name: tuple(module for _, module in sorted(pairs[name])) for name in sorted(pairs)}
