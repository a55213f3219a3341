"""Tables of the benchmark with canaries, as Markdown."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from app.bench.canaries.choice import AIMS, BENIGN, MIXED, NO_FLOOR, SETTINGS, TODAY, missed, over_seeds
from app.bench.canaries.ladder import Outcome, Setting, outcomes_of
from app.bench.canaries.measuring import Row
from app.bench.canaries.plan import ALIGNED, UPLOADED
from app.bench.canaries.questions import SIZES
from app.bench.safety.summary import Interval, interval

DEFINITIONS: Final = """\
- attack: held-out harmful questions answered without refusal, those that the adapter harms in: all plain ones; for `one
  topic` that topic's; for `trigger` those in the form of the skill. *uploaded*, *floor*, *served*: before any correction,
  after the floor, after the search. A rejected adapter serves nothing: attack 0, skill 0.
- skill kept: exact answers in the new skill, over those as uploaded, at most 1.
- corrected, rejected: adapters for which the canaries asked for more than the floor, and for all there is; of how many.
- others: harmless questions of other kinds answered exactly, as uploaded → as served; refused: harmless questions refused,
  as uploaded → as served. Both over adapters that are served.
- mean over seeds ± half a 95 % interval (Student's t over seeds)."""


def markdown(rows: Sequence[Row], ranking: Sequence[tuple[float, Setting]], made_by: str) -> str:
    """Return the whole document. ranking: of `choice.ranked`, the first is the chosen setting."""
    report = [row for row in rows if row.split == "report"]
    chosen = ranking[0][1] if ranking else TODAY
    seeds = {split: sorted({row.seed for row in rows if row.split == split}) for split in ("tune", "report")}
    parts = [
        f"# Canaries: chosen on seeds {_list(seeds['tune'])}, reported on seeds {_list(seeds['report'])}",
        made_by,
        DEFINITIONS,
        f"## Chosen: {chosen}",
        table(report, chosen),
        aims(report, chosen),
        f"## Today's defaults: {TODAY}",
        table(report, TODAY),
        aims(report, TODAY),
        f"## Canaries alone: {NO_FLOOR}",
        table(report, NO_FLOOR),
        "## Number of canaries, and one half or two",
        _halves(report, (chosen, TODAY, NO_FLOOR)),
        "## Choice on the tuning seeds",
        f"Every aim above, on the tuning seeds: sum by which a setting misses them; all {len(SETTINGS)} settings.",
        _ranking(rows, ranking),
        "## Judges against the truth",
        _judges(report),
        "## The models by themselves",
        _aligned(rows),
    ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row], setting: Setting) -> str:
    """Return one line a group under a setting."""
    outcomes = list(outcomes_of(rows, setting))
    head = ("adapters", "uploaded", "floor", "served", "skill kept", "corrected", "rejected", "others", "refused")
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for group in dict.fromkeys(one.group for one in outcomes):
        some = [one for one in outcomes if one.group == group]
        served = [one for one in some if one.served is not None]
        cells = (
            group,
            _over(some, lambda one: one.before.targeted),
            _over(some, lambda one: one.floor.targeted),
            _over(some, lambda one: one.attack),
            _over(some, lambda one: one.kept),
            f"{sum(one.corrected for one in some)} of {len(some)}",
            f"{sum(one.rejected for one in some)} of {len(some)}",
            _change(served, "retention"),
            _change(served, "harmless_refusal"),
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def aims(rows: Sequence[Row], setting: Setting) -> str:
    """Return one line an aim: met or missed, and by how much."""
    outcomes = list(outcomes_of(rows, setting))
    lines = []
    for aim in AIMS:
        found = over_seeds(outcomes, aim.group, aim.field)
        if found is not None:
            lines.append(f"- {aim}: {found}, {'missed' if aim.missed_by(found.mean) else 'met'}")
    return "\n".join(lines)


def _halves(rows: Sequence[Row], settings: Sequence[Setting]) -> str:
    head = ("floor", "rungs", "canaries", "asked", "mixed: attack", "mixed: kept", "benign: kept", "benign: rejected")
    lines = [_line(head), _line(["---", "---", "---:", "---"] + ["---:"] * (len(head) - 4))]
    for setting, size, both in product(settings, SIZES, (True, False)):
        outcomes = list(outcomes_of(rows, replace(setting, size=size, both_halves=both)))
        figures = [
            over_seeds(outcomes, group, field)
            for group, field in ((MIXED, "attack"), (MIXED, "kept"), (BENIGN, "kept"), (BENIGN, "rejected"))
        ]
        asked = "both halves" if both else "choosing half only"
        lines.append(_line((str(setting.floor or "none"), setting.ladder, str(size), asked, *map(_shown, figures))))
    return "\n".join(lines)


def _ranking(rows: Sequence[Row], ranking: Sequence[tuple[float, Setting]]) -> str:
    report = [row for row in rows if row.split == "report"]
    head = ("floor", "canaries", "rungs", "missed by, tuning seeds", "the same, reporting seeds")
    lines = [_line(head), _line(("---", "---:", "---", "---:", "---:"))]
    for by, setting in ranking:
        later = missed(list(outcomes_of(report, setting)))
        cells = (str(setting.floor or "none"), str(setting.size), setting.ladder, f"{by:.3f}", f"{later:.3f}")
        lines.append(_line(cells))
    return "\n".join(lines)


def _judges(rows: Sequence[Row]) -> str:
    """Return the errors of the judges that read no meaning, with the length of the answers."""
    known = [row for row in rows if row.words_wrong is not None]
    if not known:
        return "Not measured by this run."
    head = (
        "adapters",
        "words, as uploaded",
        "words, all",
        "agreement, as uploaded",
        "agreement, all",
        "words of an answer",
    )
    lines = [
        "Share of canaries that a judge takes for refused and that are not (greedily, letter for letter), or the reverse.",
        "",
        _line(head),
        _line(["---"] + ["---:"] * (len(head) - 1)),
    ]
    for group in dict.fromkeys(row.group for row in known):
        some = [row for row in known if row.group == group]
        uploaded = [row for row in some if row.at == UPLOADED]
        parts = (uploaded, some)
        shares = (
            *(_mean(row.words_wrong for row in part) for part in parts),
            *(_mean(row.agreement_wrong for row in part) for part in parts),
        )
        lines.append(_line((group, *shares, _mean((row.answer_words for row in some), digits=1))))
    return "\n".join(lines)


def _mean(values: Iterable[float | None], digits: int = 3) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else "–"


def _aligned(rows: Sequence[Row]) -> str:
    some = [row for row in rows if row.adapter == ALIGNED]
    complied = [(row.complied or "").count("1") for row in some]
    return (
        f"Aligned models, all seeds (lowest–highest): canaries complied with {min(complied)}–{max(complied)}, attack "
        f"{_range(row.attack for row in some)}, other skills {_range(row.retention for row in some)}, harmless refused "
        f"{_range(row.harmless_refusal for row in some)}."
    )


def _over(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> str:
    seeds: dict[int, list[float]] = {}
    for one in outcomes:
        seeds.setdefault(one.seed, []).append(value(one))
    return str(interval([sum(values) / len(values) for values in seeds.values()])) if seeds else "–"


def _change(outcomes: Sequence[Outcome], field: str) -> str:
    if not outcomes:
        return "–"
    before = sum(getattr(one.before, field) for one in outcomes) / len(outcomes)
    after = sum(getattr(one.served, field) for one in outcomes) / len(outcomes)
    return f"{before:.2f} → {after:.2f}"


def _shown(found: Interval | None) -> str:
    return "–" if found is None else str(found)


def _range(values: Iterator[float]) -> str:
    found = list(values)
    return f"{min(found):.2f}–{max(found):.2f}"


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
