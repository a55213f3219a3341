"""Picture of dashboard panels: answers of a real Prometheus to the panels' own queries, drawn as Grafana draws them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

GROUND, TEXT, GRID = "#181b1f", "#ccccdc", "#2c3235"
COLOURS: Final = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9")
WIDTH_IN, HEIGHT_IN, DPI = 5.2, 2.9, 110

Series = Sequence[Mapping[str, Any]]


def draw(panels: Mapping[str, Series], path: Path) -> None:
    """panels: title → series of one range query, as Prometheus answers. Writes a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN * len(panels), HEIGHT_IN), dpi=DPI, facecolor=GROUND, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        axis.set_facecolor(GROUND)
        axis.set_title(title, color=TEXT, loc="left", fontsize=10)
        began = min(float(one["values"][0][0]) for one in series)
        for colour, one in zip(COLOURS, sorted(series, key=lambda one: str(one["metric"])), strict=False):
            label = ", ".join(str(value) for value in one["metric"].values())
            times = [float(at) - began for at, _ in one["values"]]
            values = [float(value) for _, value in one["values"]]
            axis.plot(times, values, color=colour, linewidth=1.4, label=label)
            axis.fill_between(times, values, color=colour, alpha=0.12)
        axis.tick_params(colors=TEXT, labelsize=8)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_xlabel("seconds", color=TEXT, fontsize=8)
        axis.legend(fontsize=8, facecolor=GROUND, edgecolor=GRID, labelcolor=TEXT, loc="upper left")
        for spine in axis.spines.values():
            spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=GROUND)
