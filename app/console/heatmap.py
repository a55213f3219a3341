"""Heat map of a report: one row per module type, one column per block, each cell the deciding E-DIEM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.console.render import number, words
from app.domain.combined_score import block_of
from app.domain.policy import shown_tau

SHADES: Final = 5
"""Shades on each side of τ; the style sheet defines as many."""

LEAST_SPAN: Final = 2.0
"""Least distance from τ to the last shade, in interquartile ranges; without it a harmless adapter would look extreme."""

CUT: Final = "prune"
MARKS: Final = {CUT: "×", "project": "⊥"}
"""Marks beside the score of a module that is not kept unchanged."""

COUNTED_DECISIONS: Final = {"keep": "kept", CUT: "cut out", "project": "projected", "reject": "refused"}
COMPARISONS: Final = ("input", "alignment", "projection")


@dataclass(frozen=True, slots=True)
class Cell:
    """One module. shade: −SHADES (far below τ) to SHADES (far above), None without a score. detail: all measurements."""

    module: str
    text: str
    shade: int | None
    cut: bool
    mark: str
    fate: str
    detail: str

    @property
    def style(self) -> str:
        """The cell's class in the style sheet."""
        if self.shade is None:
            return "shade-none"
        return f"shade-{'above' if self.shade > 0 else 'below'}-{abs(self.shade)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One module type over all blocks; a cell is None if its block has no such module."""

    kind: str
    cells: tuple[Cell | None, ...]

    @property
    def cut(self) -> int:
        """Number of modules of this type that were cut out."""
        return sum(cell.cut for cell in self.cells if cell is not None)

    @property
    def modules(self) -> int:
        """Number of modules of this type."""
        return sum(cell is not None for cell in self.cells)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Heat map of one report. blocks: their short names, in order; "–" for modules outside any block."""

    comparison: str
    tau: float
    blocks: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def cut(self) -> tuple[int, ...]:
        """Number of modules cut out in each block."""
        columns = zip(*(row.cells for row in self.rows), strict=True)
        return tuple(sum(cell.cut for cell in column if cell is not None) for column in columns)


def heat_map(verdict: Mapping[str, Any]) -> HeatMap:
    """Build the heat map of a verdict made by `verdict_json`."""
    modules: Sequence[Mapping[str, Any]] = verdict["modules"]
    comparison, tau = str(verdict["policy"]["comparison"]), shown_tau(float(verdict["policy"]["tau"]))
    span = _span(modules, comparison, tau)
    placed = {(block_of(m["name"]), _kind(m["name"])): _cell(m, comparison, tau, span) for m in modules}
    blocks = sorted({block for block, _ in placed}, key=_natural)
    kinds = dict.fromkeys(kind for _, kind in sorted(placed, key=lambda place: _natural(place[0])))
    rows = tuple(Row(kind, tuple(placed.get((block, kind)) for block in blocks)) for kind in kinds)
    return HeatMap(comparison, tau, tuple(_short(block) for block in blocks), rows)


def _kind(module: str) -> str:
    """Return a module's type, which is unique in its block: `model.layers.3.self_attn.q_proj` → `self_attn.q_proj`."""
    return module.removeprefix(block_of(module)).lstrip(".")


def _short(block: str) -> str:
    return block.rsplit(".", 1)[-1] or "–"


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key: block 2 before block 10, modules outside any block first."""
    return [(len(part), part) for part in name.split(".")] if name else []


def _span(modules: Sequence[Mapping[str, Any]], comparison: str, tau: float) -> float:
    scores = (m["scores"].get(comparison) for m in modules)
    return max((abs(score - tau) for score in scores if score is not None), default=LEAST_SPAN) or LEAST_SPAN


def _cell(module: Mapping[str, Any], comparison: str, tau: float, span: float) -> Cell:
    score = module["scores"].get(comparison)
    cut = module["decision"] == CUT
    return Cell(
        module=module["name"],
        text=number(score, 1),
        shade=None if score is None else _shade(score - tau, max(span, LEAST_SPAN)),
        cut=cut,
        mark=MARKS.get(module["decision"], ""),
        fate=f"{fate(module['decision'])}: {words(module['reason'])}",
        detail=_detail(module),
    )


def _shade(above: float, span: float) -> int:
    """Return 1…SHADES above τ, −1…−SHADES at or below it, in equal steps of the span."""
    step = min(SHADES, 1 + int(SHADES * abs(above) / span))
    return step if above > 0 else -step


def fate(decision: str) -> str:
    """Return the decision about a module, in words for people."""
    return COUNTED_DECISIONS.get(decision, decision)


def ratio(module: Mapping[str, Any]) -> float | None:
    """Return ‖ΔW‖ / ‖V‖, None if either is missing or V is zero."""
    update, reference = module["update_norm"], module["v_norm"]
    return update / reference if update is not None and reference else None


def _detail(module: Mapping[str, Any]) -> str:
    known = [(name, module["scores"].get(name)) for name in COMPARISONS]
    scores = [f"{name} {number(score)}" for name, score in known if score is not None]
    cosine = module["safe_lora_cosine"]
    others = [
        *([] if cosine is None else [f"cosine {number(cosine, 3)}"]),
        f"‖ΔW‖/‖V‖ {number(ratio(module), 3)}",
        f"rank {module['rank']}",
    ]
    return " · ".join((*scores, *others))
