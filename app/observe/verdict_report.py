"""Report of a verdict for a terminal: a layer × module heat map of scores, and a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from app.domain.policy import shown_tau
from app.domain.spellings import is_tower
from app.domain.verdict import Decision, Reason
from app.observe.fitted_table import FittedTable

WORST_SHOWN: Final = 8
"""Modules that a rejection names."""

COMPARISONS: Final = ("projection", "alignment", "input")
"""Columns of scores of a report that names no comparisons, as those of older releases."""

GAP: Final = 1
EDGES: Final = 2
"""Columns between two blocks of the heat map, and at both its sides together."""

NO_MODULE: Final = Text("·", style="dim")
SHORT: Final = {"projection": "proj.", "alignment": "align."}
"""Headings of comparisons whose names are longer than their scores: all three fit into 80 columns."""

SHADES: Final = ("green", "yellow", "red")
_BLOCK = re.compile(r"\.(?:layers|h|blocks)\.([0-9]+)\.(.+)$")


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key under which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def place(module: str) -> tuple[int, str]:
    """Return (block number, last name) of a module path; (-1, the whole path) if the module is in no block."""
    found = _BLOCK.search(module)
    return (int(found[1]), found[2].rsplit(".", 1)[-1]) if found else (-1, module)


def notes(verdict: Mapping[str, Any]) -> list[str]:
    """Return remarks on an adapter that is served without the effect its owner may expect."""
    modules = verdict["modules"]
    found = []
    if modules and all(m["update_norm"] == 0.0 for m in modules):
        found.append("the update is zero in every module: the adapter has no effect; training did not change lora_B")
    if dropped := sum((m.get("reason"), m.get("decision")) == (Reason.TOWER, Decision.PRUNE) for m in modules):
        found.append(f"{dropped} modules are dropped: the engine serves no LoRA on towers and projectors")
    elif tower := sum(is_tower(m["name"]) and m.get("reason") != Reason.TOWER for m in modules):
        found.append(
            f"{tower} modules are outside the language model: vLLM needs --enable-tower-connector-lora for them"
        )
    return found


def heat_map(verdict: Mapping[str, Any]) -> RenderableType:
    """Return a heat map: blocks across, module types down, each cell the deciding E-DIEM; `×` marks cut, `⊥` projected.

    `verdict`: as returned by `verdict_json`.
    """
    comparison, tau = verdict["policy"]["comparison"], shown_tau(float(verdict["policy"]["tau"]))
    cells = {place(m["name"]): _cell(m, comparison, tau) for m in verdict["modules"]}
    title = Text(f"E-DIEM ({comparison}) by module and block; × is cut out, ⊥ projected: above τ = {tau:g}")
    return Group(title, _HeatMap(_kinds(verdict["modules"]), cells))


@dataclass(frozen=True, slots=True)
class _HeatMap:
    """Blocks across, kinds of modules down; as many blocks beside each other as fit, the others below them.

    cells: by block and kind.
    """

    kinds: Sequence[str]
    cells: Mapping[tuple[int, str], Text]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one table for each band of blocks (rich)."""
        blocks = sorted({block for block, _ in self.cells})
        label = max(map(len, (*self.kinds, "module")))
        band: list[int] = []
        width = start = EDGES + label
        for block in blocks:
            column = GAP + max(len(_heading(block)), *(len(self._cell(block, kind)) for kind in self.kinds))
            if band and width + column > options.max_width:
                yield self._table(band)
                band, width = [], start
            band.append(block)
            width += column
        yield self._table(band)

    def _table(self, blocks: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
        table.add_column("module", no_wrap=True)
        for block in blocks:
            table.add_column(_heading(block), justify="right", no_wrap=True)
        for kind in self.kinds:
            table.add_row(kind, *(self._cell(block, kind) for block in blocks))
        return table

    def _cell(self, block: int, kind: str) -> Text:
        return self.cells.get((block, kind), NO_MODULE)


def _heading(block: int) -> str:
    return "–" if block < 0 else str(block)


def _kinds(modules: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(place(m["name"])[1] for m in modules))


def _cell(module: Mapping[str, Any], comparison: str, tau: float) -> Text:
    score = module["scores"].get(comparison)
    cut = {"prune": "×", "project": "⊥"}.get(module["decision"], "")
    if score is None:
        return Text(f"–{cut}", style="dim")
    style = SHADES[2] if cut else SHADES[1] if score > tau / 2 else SHADES[0]
    shown = f"{score:.1f}".replace("-0.", "-.")  # one character less
    return Text(f"{shown}{cut}", style=style)


def worst_modules(verdict: Mapping[str, Any]) -> RenderableType:
    """Return a table of the condemned modules with the highest deciding scores."""
    comparison = verdict["policy"]["comparison"]
    condemned = [m for m in verdict["modules"] if m["decision"] != "keep"]
    worst = sorted(condemned, key=lambda m: -(m["scores"].get(comparison) or 0.0))
    rows = [(m["name"], _number(m["scores"].get(comparison)), m["reason"]) for m in worst[:WORST_SHOWN]]
    if len(worst) > WORST_SHOWN:
        rows.append((f"… and {len(worst) - WORST_SHOWN} more", "", ""))
    score = f"E-DIEM ({comparison})"
    return FittedTable(("module", score, "reason"), rows, numbers={score})


def score_table(verdict: Mapping[str, Any]) -> RenderableType:
    """Return a table with one row per module: the measured comparisons' scores, norms, cosine, decision and reason."""
    comparisons = verdict.get("measured", COMPARISONS)
    numbers, rows = (*(SHORT.get(name, name) for name in comparisons), "cosine", "‖ΔW‖/‖V‖"), []
    for m in sorted(verdict["modules"], key=lambda m: natural(m["name"])):
        scores = [_number(m["scores"].get(name)) for name in comparisons]
        ratio = m["update_norm"] / m["v_norm"] if m["v_norm"] and m["update_norm"] is not None else None
        norms = [_number(m["safe_lora_cosine"], 3), _number(ratio, 3)]
        rows.append((m["name"].removeprefix("model.layers."), *scores, *norms, f"{m['decision']}: {m['reason']}"))
    table = FittedTable(("module", *numbers, "decision"), rows, numbers, wrapping={"decision"})
    return Group(Text(f"{verdict['outcome']}: {verdict['reason']}"), table, _totals_table(verdict))


def _totals_table(verdict: Mapping[str, Any]) -> RenderableType:
    """Return a table of the deciding scores of all modules together and of the worst block, as received and as kept."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("taken together", no_wrap=True)
    for column in ("modules", "score", "of random", "budget", "‖ΔW‖", "input share"):
        table.add_column(column, justify="right", no_wrap=True)
    for when in ("received", "kept"):
        totals = verdict["together"][when]
        worst = max(totals["blocks"], key=lambda b: (b["score"] is not None, b["score"] or 0.0), default=None)
        for total, scope, budget in ((totals["adapter"], "all", "adapter"), (worst, "worst block", "block")):
            if total is not None:
                label = f"{when}: {scope} {total['name'].rsplit('.', 1)[-1]}".rstrip()
                table.add_row(label, *_total(total, verdict["policy"][f"max_{budget}_score"]))
    return table


def _total(total: Mapping[str, Any], budget: float | None) -> list[str]:
    numbers = [_number(total["score"]), _number(total["expected"]), _number(budget)]
    return [str(total["modules"]), *numbers, _number(total["update_norm"], 3), _number(total["input_share"], 3)]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
