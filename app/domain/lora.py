"""Values for a LoRA adapter and for the model it must fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from app.domain.digest import Digest

if TYPE_CHECKING:
    from torch import Tensor


MAX_MODULES: Final = 94 * (128 * 3 + 8)
"""Modules of the largest adapter that people train: 94 layers of 128 experts, three linear modules each, and eight beside
them (Qwen3-235B-A22B)."""


class ServingDtype(StrEnum):
    """Dtype in which the engine computes LoRA; every adapter is cast to it before it is measured."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a linear module's weight: (d_out, d_in), in elements."""

    d_out: int
    d_in: int


@dataclass(frozen=True, slots=True)
class TargetModel:
    """Model that an adapter must fit: the served model's adaptable modules and the engine's bounds.

    `modules` maps a module path (`model.layers.0.self_attn.q_proj`) to its weight's shape, from the reference.
    """

    name: str
    modules: Mapping[str, Shape]
    dtype: ServingDtype
    max_rank: int


@dataclass(frozen=True, slots=True, eq=False)
class LoraModule:
    """One adapted module as it will be served: ΔW = b @ a, with no further factor.

    a: (r, d_in), b: (d_out, r), both contiguous, finite and in the serving dtype; the received scaling (alpha / r or
    alpha / √r) is already multiplied into b; `scaling` only records it.
    """

    name: str
    a: "Tensor"
    b: "Tensor"
    scaling: float

    @property
    def rank(self) -> int:
        """r, the inner dimension."""
        return int(self.a.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A validated adapter: modules sorted by name, at least one when it comes from validate.

    balanced: every module is in the form that may be served; set only by screen/balance.py.
    """

    modules: tuple[LoraModule, ...]
    dtype: ServingDtype
    balanced: bool = False

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 without modules."""
        return max((module.rank for module in self.modules), default=0)


@dataclass(frozen=True, slots=True)
class Received:
    """Digests and sizes (bytes) of the two parts of an upload as received."""

    config_digest: Digest
    weights_digest: Digest
    config_bytes: int
    weights_bytes: int
