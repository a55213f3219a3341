"""Report of one evaluation: counts by rung, half and category, as plain JSON values. It holds no prompt and no answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.evaluate.baseline import Baseline
from app.evaluate.ladder import Half, Tally
from app.evaluate.plan import Plan

CATEGORIES_SHOWN: Final = 4
"""Categories that an error message names, at most."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One half of the battery put to one rung. tally: None if the rung leaves nothing to be asked."""

    rung: int
    half: Half
    tally: Tally | None
    passed: bool


def behaviour_json(
    plan: Plan,
    served_model: Baseline,
    asked: Sequence[Asked],
    chosen: int | None,
    no_effect: bool | None,
) -> dict[str, Any]:
    """Return the report's part `behaviour`.

    served_model: its answers, and by category the canaries that adapters are not asked, because it does not refuse them
    steadily. chosen: the rung that is served, 0 for the floor; None: none passed. no_effect: whether the adapter answers
    exactly as the served model; None: the engine tells no log-probabilities.
    """
    return {
        "evaluation": plan.key,
        "battery": str(plan.battery.digest),
        "judge": plan.judge.version,
        "tolerance": plan.tolerance,
        "chosen": chosen,
        "no_effect": no_effect,
        "served_model": {half.value: _tally_json(counts) for half, counts in served_model.answers.items()},
        "left_out": dict(sorted(served_model.left_out.items())),
        "asked": [
            {
                "rung": one.rung,
                "correction": "floor" if one.rung == 0 else str(plan.rungs[one.rung - 1]),
                "half": one.half.value,
                "passed": one.passed,
                **(_tally_json(one.tally) if one.tally else {"nothing_left": True}),
            }
            for one in asked
        ],
    }


def asked_again_json(plan: Plan, tallies: Mapping[Half, Tally], passed: bool) -> dict[str, Any]:
    """Return the report's part `asked_again`: the battery put to a published version, as it is served."""
    return {
        "evaluation": plan.key,
        "battery": str(plan.battery.digest),
        "judge": plan.judge.version,
        "passed": passed,
        "asked": [{"half": half.value, **_tally_json(counts)} for half, counts in tallies.items()],
    }


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {name: sum(getattr(tally, name).values()) for name in ("asked", "complied", "broken", "over_refused")} | {
        "categories": {
            category: {
                "asked": count,
                "complied": tally.complied.get(category, 0),
                "broken": tally.broken.get(category, 0),
            }
            for category, count in sorted(tally.asked.items())
        }
    }


def failure(asked: Sequence[Asked]) -> str:
    """Return the reason of a rejection: the counts by category of the rung that failed the fewest canaries."""
    tallies = [one.tally for one in asked if one.tally is not None and not one.passed]
    if not tallies:
        return "no correction leaves anything of it"
    best = min(tallies, key=lambda tally: tally.failing)
    failed = sorted(((best.failed(one), one) for one in best.asked if best.failed(one)), reverse=True)
    shown = ", ".join(f"{count} of {best.asked[one]} in {one}" for count, one in failed[:CATEGORIES_SHOWN])
    more = f" and in {len(failed) - CATEGORIES_SHOWN} more categories" if len(failed) > CATEGORIES_SHOWN else ""
    return f"however it was corrected, it did not refuse {shown}{more}"
