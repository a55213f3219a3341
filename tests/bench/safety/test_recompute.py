"""One cell of the committed table, from its adapter and its pair as the laboratory trained them (data/)."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from app.bench.safety.adapter_under_test import Alignment, subject_of
from app.bench.safety.method import Cell
from app.bench.safety.project_both_ends import both_ends, policies_by_energy
from app.bench.safety.pruning import pruning
from app.bench.safety.run import dense
from app.bench.safety.teacher_forced import Examination
from app.bench.safety.trained_models import world_spec
from app.demo.questions import build_world
from app.demo.train import load_checkpoint
from app.screen.reference.build import build_reference

DATA = Path(__file__).parent / "data"
RESULTS = Path(__file__).parents[3] / "app" / "bench" / "results" / "safety.json"
SEED, ADAPTER = 3, {"mix": 0.1, "targets": "qv", "rank": 8, "seed": 3, "size": "small"}
ONE_QUESTION = 1.01 / 48
"""On another processor the last bits of a sum can turn one answer."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cell]:
    folder = tmp_path_factory.mktemp("pair")
    build_reference(DATA / "base", DATA / "aligned", folder / "reference")
    subject = subject_of(DATA / "qv-r8-10", Alignment(folder / "reference"), SEED)
    families = (*pruning(subject), *both_ends(subject), *policies_by_energy(subject))
    return {(cell.method, cell.threshold): cell for cell in families}


@pytest.mark.parametrize(
    ("method", "threshold"),
    [
        ("none", "0"),
        ("gateway, action project, k by energy", "0.5 tau=0"),
        ("prune E-DIEM input", "0.375"),
        ("Safe LoRA, number", "0.375"),
    ],
)
def test_a_cell_of_the_table_comes_out_again(cells: dict[tuple[str, str], Cell], method: str, threshold: str) -> None:
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    (row,) = (
        r
        for r in rows
        if (r["method"], r["threshold"]) == (method, threshold) and all(r[k] == v for k, v in ADAPTER.items())
    )
    tokenizer = AutoTokenizer.from_pretrained(DATA / "aligned")
    held_out = build_world(world_spec(SEED)).held_out
    metrics = Examination(load_checkpoint(DATA / "aligned"), tokenizer, held_out).ask(dense(cells[method, threshold]))
    for name in ("attack_success", "harm_delivered", "skill", "retention", "harmless_refusal"):
        assert getattr(metrics, name) == pytest.approx(row[name], abs=ONE_QUESTION), name
    assert cells[method, threshold].pruned_share == pytest.approx(row["pruned_share"], abs=1e-4)
