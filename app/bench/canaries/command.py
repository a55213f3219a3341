"""Command `bench safety --canaries`: runs the plan and writes rows, tables and a figure."""

import json
import time
from typing import Final

from rich.console import RenderableType
from rich.markdown import Markdown

from app.bench.canaries.choice import ranked
from app.bench.canaries.plan import full
from app.bench.canaries.plan import quick as quick_plan
from app.bench.canaries.run import rows_of
from app.bench.canaries.tables import markdown
from app.bench.progress import ReportProgress
from app.bench.safety.cache import Cache
from app.bench.safety.command import MADE_FILE, TABLE_FILE, Options, json_rows, provenance, provenance_sentence

ROWS_FILE: Final = "rows.json"
FIGURE_FILE: Final = "canaries.png"


def run(options: Options, progress: ReportProgress) -> RenderableType:
    """Run everything in the plan that is missing in the cache; return the tables, also written to `output`."""
    started = time.monotonic()
    plan = quick_plan() if options.quick else full()
    damaged: list[str] = []
    cache = Cache(
        options.cache, lambda path: damaged.append(f"{path.name} in the cache was damaged and was made again")
    )
    rows = list(rows_of(plan, cache, progress, only_cached=options.only_cached))
    made = provenance(options, time.monotonic() - started)
    ranking = ranked(rows)
    text = markdown(rows, ranking, provenance_sentence(made))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / ROWS_FILE).write_text(json_rows(row.plain() for row in rows), encoding="utf-8")
    (options.output / TABLE_FILE).write_text(text, encoding="utf-8")
    (options.output / MADE_FILE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    try:
        from app.bench.canaries.figure import draw
    except ImportError as error:
        damaged.append(f"no figure: {error.name} is missing; install the extra `bench`")
    else:
        draw(rows, ranking[0][1], options.output / FIGURE_FILE)
    return Markdown("\n\n".join([text, *damaged, f"written to {options.output}"]))
