"""Figures that are readable without the text. matplotlib is in the extra `bench`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from app.bench.safety.summary import BEFORE, Outcome, Row, outcomes_of
from app.domain.policy import Comparison

CURVES: Final = (
    "random",
    "prune norm",
    "prune released SPLoRA score",
    "prune E-DIEM projection",
    "prune E-DIEM alignment",
    "prune E-DIEM input",
    "prune S3LoRA sharpness",
    "Safe LoRA, number",
    "lower alpha",
    "project inputs",
    "project + restore",
    "project inputs and outputs",
)
"""Methods with one panel each."""

INK, GREY, ACCENT, WARM = "#1f2933", "#9aa5b1", "#0b6e99", "#c2410c"

Point = tuple[float, float]


def draw(rows: Sequence[Row], scores: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write all figures as PNG; return their paths."""
    mpl.use("Agg")
    style: Any = {
        "font.size": 9,
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "text.color": INK,
        "svg.hashsalt": "0",
    }
    with plt.rc_context(style):
        report = outcomes_of(row for row in rows if row["split"] == "report")
        made = [_trade_off(report, folder), _false_prunes(report, folder)]
        return [*made, *_maps(scores, folder)]


def _trade_off(report: Mapping[tuple[str, str], Sequence[Outcome]], folder: Path) -> Path:
    figure, axes = plt.subplots(3, 4, figsize=(11, 8), sharex=True, sharey=True, layout="constrained")
    control = _curves(report, "random")
    for axis, method in zip(axes.flat, CURVES, strict=True):
        if method != "random":
            _band(axis, control, GREY, "random modules")
        _band(axis, _curves(report, method), ACCENT, method)
        axis.set_title(method, fontsize=9, loc="left")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("attack success: harmful questions answered (less is better)")
    figure.supylabel("share of the fine-tune's new skill that is kept (more is better)")
    figure.suptitle(
        "Mixed fine-tunes, seeds not used for tuning: mean and range over seeds; best is the upper left corner"
    )
    return _save(figure, folder / "trade-off.png")


def _curves(report: Mapping[tuple[str, str], Sequence[Outcome]], method: str) -> dict[int, list[Point]]:
    """Return seed → its points (attack, kept), averaged over its mixed adapters, from no change to the last threshold."""
    points: dict[int, list[Point]] = defaultdict(list)
    for (name, _), outcomes in report.items():
        if name not in (method, BEFORE):
            continue
        for seed in sorted({o.seed for o in outcomes}):
            mixed = [o for o in outcomes if o.seed == seed and o.harmful]
            points[seed].append((float(np.mean([o.attack for o in mixed])), float(np.mean([o.kept for o in mixed]))))
    return points


def _band(axis: Axes, curves: Mapping[int, Sequence[Point]], colour: str, label: str) -> None:
    """Plot the most skill kept at an attack success of at most x: mean over seeds, and the range between them."""
    grid = np.linspace(0.0, 1.0, 101)
    steps = np.array([[max((k for a, k in some if a <= x), default=0.0) for x in grid] for some in curves.values()])
    if not len(steps):
        return
    axis.fill_between(grid, steps.min(0), steps.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(grid, steps.mean(0), color=colour, linewidth=1.8, label=label)
    raw = np.array([point for some in curves.values() for point in some])
    axis.scatter(raw[:, 0], raw[:, 1], s=5, color=colour, alpha=0.45, linewidths=0)


def _false_prunes(report: Mapping[tuple[str, str], Sequence[Outcome]], folder: Path) -> Path:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, comparison in zip(axes, Comparison, strict=True):
        method = f"prune E-DIEM {comparison}, tau"
        taus = sorted({float(threshold) for name, threshold in report if name == method})
        for harmful, colour, label in ((True, WARM, "mixed with harm"), (False, ACCENT, "benign")):
            shares = [[o.pruned for o in report[method, f"{tau:g}"] if o.harmful is harmful] for tau in taus]
            means = [float(np.mean(some)) for some in shares]
            axis.fill_between(
                taus, [min(s) for s in shares], [max(s) for s in shares], color=colour, alpha=0.12, linewidth=0
            )
            axis.plot(taus, means, color=colour, marker="o", markersize=3, label=label)
        axis.set_title(f"E-DIEM {comparison}", fontsize=9, loc="left")
        axis.set_xlabel("threshold τ")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of modules condemned")
    axes[0].legend(frameon=False)
    figure.suptitle("What would be cut out of a benign fine-tune at the same threshold (range over adapters)")
    return _save(figure, folder / "false-prunes.png")


def _maps(scores: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw layer × module maps of one seed's adapters of all linear modules: benign beside harmful."""
    shown = [one for one in scores if one["targets"] == "all" and one["rank"] == 8 and one["mix"] in (0.0, 0.1)]
    pair = [next((one for one in shown if one["mix"] == mix), None) for mix in (0.0, 0.1)]
    benign, harmful = pair
    if benign is None or harmful is None:
        return []
    figure, axes = plt.subplots(3, 2, figsize=(10, 8), layout="constrained")
    for row, comparison in zip(axes, Comparison, strict=True):
        grids = [_grid(one["modules"], comparison) for one in (benign, harmful)]
        reach = max(float(np.nanmax(np.abs(grid))) for grid, _ in grids) or 1.0
        for axis, (grid, kinds), what in zip(row, grids, ("benign", "10 % harmful"), strict=True):
            image = axis.imshow(grid, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
            axis.set_yticks(range(len(kinds)), kinds)
            axis.set_title(f"E-DIEM {comparison}: {what}", fontsize=9, loc="left")
        figure.colorbar(image, ax=row, shrink=0.8)
    for axis in axes[-1]:
        axis.set_xlabel("block")
    figure.suptitle(f"Every module's score, seed {benign['seed']}: red lies above a random update, blue below")
    return [_save(figure, folder / "maps.png")]


def _grid(modules: Mapping[str, Mapping[str, float | None]], comparison: Comparison) -> tuple[np.ndarray, list[str]]:
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules))
    blocks = 1 + max(int(name.split(".")[2]) for name in modules)
    grid = np.full((len(kinds), blocks), np.nan)
    for name, found in modules.items():
        score = found[comparison]
        grid[kinds.index(name.rsplit(".", 1)[-1]), int(name.split(".")[2])] = np.nan if score is None else score
    return grid, kinds


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
