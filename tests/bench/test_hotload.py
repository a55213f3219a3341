"""The hot-load benchmark at the size of one layer: its parts add up to its whole, and its table and file are written."""

import pytest
from rich.console import Console

from app.bench.engine.hotload import STAGES, at_llama_size, result_json, table


@pytest.mark.slow
def test_stages_add_up_to_the_whole() -> None:
    case = at_llama_size(1, 2, lambda *_: None)
    assert len(case.rounds) == 2
    for one in case.rounds:
        assert set(one.stages) == set(STAGES)
        assert min(one.stages.values()) > 0
        assert one.first_token > 0
        assert one.rest > -0.05  # the gateway's clock and ours look at the same work from two sides
        assert sum(one.stages.values()) + one.rest + one.first_token == pytest.approx(one.total, abs=0.01)
    console = Console(width=168, record=True)
    console.print(table((case,)))
    assert "r = 16" in console.export_text()
    assert result_json((case,))["cases"][0]["size"] == case.size > 0
