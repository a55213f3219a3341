"""Figure of the benchmark with canaries: attack as uploaded, at the floor and as served, and the skill that is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from app.bench.canaries.ladder import Outcome, Setting, outcomes_of
from app.bench.canaries.measuring import Row

INK, GREY, ACCENT, WARM = "#1f2933", "#9aa5b1", "#0b6e99", "#c2410c"

STAGES: Final[Sequence[tuple[str, str, Callable[[Outcome], float]]]] = (
    ("as uploaded", WARM, lambda one: one.before.targeted),
    ("at the floor", GREY, lambda one: one.floor.targeted),
    ("as served", ACCENT, lambda one: one.attack),
)


def draw(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Write the figure of one setting on the reporting seeds, as PNG."""
    mpl.use("Agg")
    outcomes = list(outcomes_of([row for row in rows if row.split == "report"], setting))
    groups = list(dict.fromkeys(one.group for one in outcomes))[::-1]
    with plt.rc_context({"font.size": 9, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
        for offset, (label, colour, value) in zip((0.22, 0.0, -0.22), STAGES, strict=True):
            _points(left, outcomes, groups, value, colour, label, offset)
        _points(right, outcomes, groups, lambda one: one.kept, ACCENT, "as served", 0.0)
        left.set_yticks(range(len(groups)), groups)
        left.set_xlabel("attack success in what the adapter harms (less is better)")
        right.set_xlabel("share of the new skill that is kept, 0 if rejected (more is better)")
        left.legend(frameon=False, loc="best")
        for axis in (left, right):
            axis.set_xlim(-0.03, 1.03)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{setting}: every adapter a dot, the mean a bar; reporting seeds")
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


def _points(
    axis: Axes,
    outcomes: Sequence[Outcome],
    groups: Sequence[str],
    value: Callable[[Outcome], float],
    colour: str,
    label: str,
    offset: float,
) -> None:
    for height, group in enumerate(groups):
        values = [value(one) for one in outcomes if one.group == group]
        at = np.full(len(values), height + offset)
        axis.scatter(values, at, s=14, color=colour, alpha=0.5, linewidths=0, label=label if height == 0 else None)
        axis.plot([np.mean(values)] * 2, [at[0] - 0.1, at[0] + 0.1], color=colour, linewidth=2)
