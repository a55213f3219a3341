"""A report as a heat map: module types down, blocks across, each cell the E-DIEM that decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.console.render import number, words
from app.domain.combined_score import block_of

SHADES: Final = 5
"""Shades on each side of τ; the style sheet has as many."""

LEAST_SPAN: Final = 2.0
"""Interquartile ranges from τ to the last shade, at least: or a calm adapter would look as wild as a bad one."""

CUT: Final = "prune"
MARKS: Final = {CUT: "×", "project": "⊥"}
"""What stands beside the score of a module that is not kept as it came."""

COUNTED_DECISIONS: Final = {"keep": "kept", CUT: "cut out", "project": "projected", "reject": "refused"}
COMPARISONS: Final = ("input", "alignment", "projection")


@dataclass(frozen=True, slots=True)
class Cell:
    """One module. shade: −SHADES (far below τ) to SHADES (far above), None without a score. detail: all its numbers."""

    module: str
    text: str
    shade: int | None
    cut: bool
    mark: str
    fate: str
    detail: str

    @property
    def style(self) -> str:
        """Its class in the style sheet."""
        if self.shade is None:
            return "shade-none"
        return f"shade-{'above' if self.shade > 0 else 'below'}-{abs(self.shade)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One module type over all blocks; None where a block has none. cut: how many of them were cut out."""

    kind: str
    cells: tuple[Cell | None, ...]

    @property
    def cut(self) -> int:
        """Modules of this type that were cut out."""
        return sum(cell.cut for cell in self.cells if cell is not None)

    @property
    def modules(self) -> int:
        """Modules of this type."""
        return sum(cell is not None for cell in self.cells)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """blocks: their short names, in order; "–" for modules outside any. cut: modules cut out in each block."""

    comparison: str
    tau: float
    blocks: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def cut(self) -> tuple[int, ...]:
        """Modules cut out, block by block."""
        columns = zip(*(row.cells for row in self.rows), strict=True)
        return tuple(sum(cell.cut for cell in column if cell is not None) for column in columns)


def heat_map(verdict: Mapping[str, Any]) -> HeatMap:
    """`verdict`: as `verdict_json` makes it."""
    modules: Sequence[Mapping[str, Any]] = verdict["modules"]
    comparison, tau = str(verdict["policy"]["comparison"]), float(verdict["policy"]["tau"])
    span = _span(modules, comparison, tau)
    placed = {(block_of(m["name"]), _kind(m["name"])): _cell(m, comparison, tau, span) for m in modules}
    blocks = sorted({block for block, _ in placed}, key=_natural)
    kinds = dict.fromkeys(kind for _, kind in sorted(placed, key=lambda place: _natural(place[0])))
    rows = tuple(Row(kind, tuple(placed.get((block, kind)) for block in blocks)) for kind in kinds)
    return HeatMap(comparison, tau, tuple(_short(block) for block in blocks), rows)


def _kind(module: str) -> str:
    """`model.layers.3.self_attn.q_proj` → `self_attn.q_proj`: two modules of a block never share it."""
    return module.removeprefix(block_of(module)).lstrip(".")


def _short(block: str) -> str:
    return block.rsplit(".", 1)[-1] or "–"


def _natural(name: str) -> list[tuple[int, str]]:
    """Block 2 before block 10; what is outside any block first."""
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
    """1…SHADES above τ, −1…−SHADES at or below it, by equal steps of the span."""
    step = min(SHADES, 1 + int(SHADES * abs(above) / span))
    return step if above > 0 else -step


def fate(decision: str) -> str:
    """What became of a module, in a person's words."""
    return COUNTED_DECISIONS.get(decision, decision)


def ratio(module: Mapping[str, Any]) -> float | None:
    """‖ΔW‖ / ‖V‖, None where either is missing or V is zero."""
    update, reference = module["update_norm"], module["v_norm"]
    return update / reference if update is not None and reference else None


def _detail(module: Mapping[str, Any]) -> str:
    scores = [f"{name} {number(module['scores'].get(name))}" for name in COMPARISONS if name in module["scores"]]
    others = [
        f"cosine {number(module['safe_lora_cosine'], 3)}",
        f"‖ΔW‖/‖V‖ {number(ratio(module), 3)}",
        f"rank {module['rank']}",
    ]
    return " · ".join((*scores, *others))
