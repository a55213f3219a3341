"""One way to change one adapter."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.bench.safety.adapter_under_test import Low


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """method and threshold: the row's name in results. unit: what is chosen among (module, direction, adapter).

    lows: module → what is left or put there, to be added to the aligned weights. pruned_share: of the adapter's modules.
    """

    method: str
    unit: str
    threshold: str
    lows: Mapping[str, Low]
    pruned_share: float = 0.0


def bytes_saved(cell: Cell, before: Mapping[str, Low]) -> float:
    """Share of the adapter's bytes that are no longer stored or loaded; below 0 where a method adds."""
    return 1.0 - _numbers(cell.lows) / _numbers(before)


def _numbers(lows: Mapping[str, Low]) -> int:
    return sum(low.b.numel() + low.a.numel() for low in lows.values())
