"""Singular vectors of V in one module, which a policy measures and projects out: alignment reads and writes along them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SingularVectors:
    """Singular vectors of one module: inputs r (d_in, k) and outputs u (d_out, k'), orthonormal columns."""

    r: "Tensor"
    u: "Tensor"
