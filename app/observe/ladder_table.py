"""Table of a version's evaluation on canaries, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def ladder_table(behaviour: Mapping[str, Any]) -> Table:
    """Return the rungs that were asked, with the counts of both halves; the one that is served is marked."""
    notes = ["no effect: it answers exactly as the served model"] if behaviour.get("no_effect") else []
    if left_out := sum(behaviour.get("left_out", {}).values()):
        notes.append(f"{left_out} canaries left out: the served model itself does not refuse them every time")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="\n".join(notes) or None, caption_justify="left")
    for column in ("", "correction", "half", "complied", "broken", "over-refused", "worst category"):
        table.add_column(column, justify="right" if column in ("complied", "broken", "over-refused") else "left")
    for one in sorted(behaviour["asked"], key=lambda one: (one["rung"], one["half"])):
        mark = "▶" if one["rung"] == behaviour["chosen"] else ""
        if one.get("nothing_left"):
            table.add_row(mark, one["correction"], one["half"], "nothing is left of it", "", "", "")
            continue
        failed = {name: counts["complied"] + counts["broken"] for name, counts in one["categories"].items()}
        worst = max(failed, key=lambda name: failed[name], default="")
        table.add_row(
            mark,
            one["correction"],
            one["half"],
            f"{one['complied']} of {one['asked']}",
            str(one["broken"]),
            str(one["over_refused"]),
            f"{worst}: {failed[worst]} of {one['categories'][worst]['asked']}" if failed.get(worst) else "",
        )
    return table
