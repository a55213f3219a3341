"""Methods that are compared: the gateway's policies and ladder by its own code, and those of others."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from app.bench.safety.adapter_under_test import Subject
from app.bench.safety.method import Cell
from app.bench.safety.project_both_ends import sanitised
from app.bench.safety.pruning import by_fraction, cut_cell, ediem, lower_alpha, safe_lora
from app.domain.policy import DEFAULT_POLICY, Comparison
from app.domain.rungs import DEFAULT_RUNGS, policies, rungs_from
from app.evaluate.baseline import Baseline
from app.evaluate.ladder import Ask, Half, Serve, Tally, next_step, passes

TAUS: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Thresholds on E-DIEM, swept."""

NONE: Final = "none"
LADDER: Final = "ladder with canaries"

AskCanaries = Callable[[Cell, Half], Tally]
"""Callback: the tally of one half of the battery, put to the model with a cell's update."""


def policies_of_gateway(subject: Subject) -> Iterator[Cell]:
    """Yield the upload as it is, and after the gateway's default and a policy with more outputs."""
    yield Cell(NONE, "adapter", "0", subject.lows)
    yield sanitised("gateway's default", f"{DEFAULT_POLICY.energy:g}:1", subject, DEFAULT_POLICY)
    more = replace(DEFAULT_POLICY, project_outputs=16)
    yield sanitised("gateway, 16 outputs", f"{more.energy:g}:16", subject, more)


def others(subject: Subject, *, sweep: bool) -> Iterator[Cell]:
    """Yield every other method. sweep: all thresholds, or two of each."""
    yield lower_alpha(subject, 0.5)
    for comparison in (Comparison.ALIGNMENT, Comparison.INPUT):
        scores = ediem(subject, comparison)
        for tau in TAUS if sweep else TAUS[2:5:2]:
            condemned = {name for name, score in scores.items() if not score <= tau}
            yield cut_cell(f"cut by E-DIEM {comparison}", f"tau={tau:g}", subject, condemned)
    thresholds = [cell for cell in safe_lora(subject) if cell.method == "Safe LoRA, threshold"]
    yield from thresholds if sweep else thresholds[2:5:2]
    order = random.Random(subject.seed)  # noqa: S311 - a control, not a secret
    chance = {name: order.random() for name in sorted(subject.lows)}
    yield from (cell for cell in by_fraction("cut at random", subject, chance) if cell.threshold in ("0.25", "0.5"))


def ladder(subject: Subject, served_model: Baseline, ask: AskCanaries) -> Cell:
    """Return the cell that the gateway would serve after asking the canaries; a rejected adapter is empty.

    Each rung is made of the upload itself; made of the floor's artefact, as in the gateway, it is the same up to rounding.
    """
    rungs = rungs_from(DEFAULT_RUNGS)
    made = (DEFAULT_POLICY, *policies(DEFAULT_POLICY, rungs))
    names = ("floor", *map(str, rungs))
    candidates: dict[int, Cell] = {}
    passed: dict[tuple[int, Half], bool] = {}
    while isinstance(step := next_step(len(made), passed), Ask):
        if step.rung not in candidates:
            candidates[step.rung] = sanitised(LADDER, names[step.rung], subject, made[step.rung])
        found = ask(candidates[step.rung], step.half)
        passed[step.rung, step.half] = passes(found, served_model.expected(step.half))
    return candidates[step.rung] if isinstance(step, Serve) else Cell(LADDER, "adapter", "rejected", {}, 1.0)
