"""Cell of the results: one method with one parameter, applied to one adapter."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.bench.safety.adapter_under_test import Low


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """An adapter changed by one method.

    method and threshold: the row's name in results. unit: granularity of the method (module, direction, adapter).
    lows: module → the update after the change, to be added to the aligned weights. pruned_share: of the adapter's modules.
    """

    method: str
    unit: str
    threshold: str
    lows: Mapping[str, Low]
    pruned_share: float = 0.0


def bytes_saved(cell: Cell, before: Mapping[str, Low]) -> float:
    """Return the share of the adapter's bytes no longer stored or loaded; negative for methods that add bytes."""
    return 1.0 - _numbers(cell.lows) / _numbers(before)


def _numbers(lows: Mapping[str, Low]) -> int:
    return sum(low.b.numel() + low.a.numel() for low in lows.values())
