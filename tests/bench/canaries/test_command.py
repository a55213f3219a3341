"""The command, over rows that are in the cache already: nothing is trained, and everything is written."""

import json
from functools import partial
from pathlib import Path

import pytest

from app.bench.canaries.command import FIGURE_FILE, ROWS_FILE, run
from app.bench.canaries.measuring import Row
from app.bench.canaries.plan import ALIGNED, FLOORS, RUNGS, UPLOADED, quick
from app.bench.canaries.questions import SIZES
from app.bench.canaries.run import KIND, ROWS, key_of, rows_of
from app.bench.safety.cache import Cache
from app.bench.safety.command import MADE_FILE, TABLE_FILE, Options

EVERY = (UPLOADED, *(f"floor {one}" for one in FLOORS), *(f"rung {one}" for one in RUNGS))


def fill(cache: Cache, steps: int) -> int:
    """Write made-up rows for the first adapters of the quick plan; return the number of rows."""
    written = 0
    for entry, seed, split in list(quick().steps)[:steps]:
        name, group = (ALIGNED, ALIGNED) if entry is None else (entry.name, entry.group)
        corrections = (UPLOADED,) if entry is None else EVERY
        rows = [Row(name, group, seed, split, at, "0" * SIZES[-1], 0.5, skill=0.8).plain() for at in corrections]
        cache.folder(KIND, key_of(quick(), entry, seed, split), partial(write, rows=rows))
        written += len(rows)
    return written


def write(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / ROWS).write_text(json.dumps(rows), encoding="utf-8")


@pytest.mark.parametrize("steps", [10, 7])
def test_rows_tables_and_a_figure_are_written_from_what_is_there(tmp_path: Path, steps: int) -> None:
    """Seven: the reporting seed lacks three adapters."""
    pytest.importorskip("matplotlib")
    written = fill(Cache(tmp_path / "cache"), steps)
    options = Options("small", tmp_path / "cache", tmp_path / "out", quick=True, only_cached=True, canaries=True)
    run(options, lambda what, share: None)
    rows = json.loads((tmp_path / "out" / ROWS_FILE).read_text(encoding="utf-8"))
    assert len(rows) == written
    assert "| mixed | 0.50 | 0.50 | 0.50 | 1.00 |" in (tmp_path / "out" / TABLE_FILE).read_text(encoding="utf-8")
    assert (tmp_path / "out" / FIGURE_FILE).stat().st_size > 10_000
    made = json.loads((tmp_path / "out" / MADE_FILE).read_text(encoding="utf-8"))
    assert made["command"] == "python -m app bench safety --size small --canaries --quick --only-cached"


def test_a_row_comes_back_from_the_cache_as_it_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fill(cache, 2)
    rows = list(rows_of(quick(), cache, lambda what, share: None, only_cached=True))
    assert rows[0] == Row(ALIGNED, ALIGNED, 0, "tune", UPLOADED, "0" * SIZES[-1], 0.5, skill=0.8)
    assert [row.at for row in rows[1:]] == list(EVERY)
