"""Where alignment reads and writes in one module: the singular vectors of V that a policy looks at and takes out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Of one module: inputs r (d_in, k) and outputs u (d_out, k'), orthonormal columns."""

    r: "Tensor"
    u: "Tensor"
