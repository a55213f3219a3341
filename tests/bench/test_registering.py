"""The fairness benchmark: its figures from known gaps, and one short round over the real engine."""

import pytest
from rich.console import Console

from app.bench.engine.registering import ALONE, REGISTERING, Gaps, result_json, run, table


def test_the_ratio_is_of_the_same_percentile_of_both_kinds() -> None:
    found = Gaps({ALONE: [n / 1000 for n in range(1, 101)], REGISTERING: [n / 500 for n in range(1, 101)]}, [1.0, 3.0])
    assert found.ratio(99) == pytest.approx(2.0)
    console = Console(width=120, record=True, quiet=False)
    console.print(table(found))
    shown = console.export_text()
    assert "51.0" in shown
    assert "102.0" in shown
    assert "2.00" in shown
    assert "2 uploads, median 2.0 s" in shown
    assert result_json(found)["between_tokens"][REGISTERING]["count"] == 100


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.long
def test_a_short_round_over_the_real_engine_measures_both_kinds() -> None:
    found = run(lambda *_: None, rounds=1, period_s=1.0)
    assert all(len(gaps) > 100 for gaps in found.between.values())
    assert len(found.evaluations) >= 1
