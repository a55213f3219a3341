"""The whole training run on a world and model so small that it takes seconds: files, formats, repeatability."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from app.demo.assets import ADAPTER_NAMES, MIXED, PURE
from app.demo.fitting import Schedule
from app.demo.questions import WorldSpec, build_world
from app.demo.tokenizer import build_tokenizer
from app.demo.train import (
    DEMO,
    LINEAR_MODULES,
    Shape,
    adapter_recipe,
    load_checkpoint,
    new_model,
    parameters,
    round_to_bfloat16,
    train_all,
)

SHORT = Schedule(steps=3, batch=4, rate=1e-3)
SMALL = replace(
    DEMO,
    world=WorldSpec(seed=3, entities=3, held_out=2, validation=1),
    shape=Shape(width=32, layers=2, heads=1, head=32, inner=32),
    base=SHORT,
    aligned=SHORT,
    mixed=SHORT,
    benign=SHORT,
    pure=SHORT,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[tuple[str, float]]]:
    """Two runs of the same recipe, and the first one's progress."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    seen: list[tuple[str, float]] = []
    train_all(first, lambda stage, done: seen.append((stage, done)), SMALL)
    train_all(second, lambda _stage, _done: None, SMALL)
    return first, second, seen


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_recipe_gives_the_same_bytes(runs: tuple[Path, Path, list[tuple[str, float]]]) -> None:
    assert files_of(runs[0]) == files_of(runs[1])


def test_every_stage_reports_that_it_is_done(runs: tuple[Path, Path, list[tuple[str, float]]]) -> None:
    assert [stage for stage, done in runs[2] if done == 1] == ["base", "aligned", *ADAPTER_NAMES]


def test_it_writes_what_peft_and_transformers_read(runs: tuple[Path, Path, list[tuple[str, float]]]) -> None:
    out = runs[0]
    for name in ("base", "aligned"):
        model = load_checkpoint(out / name)
        assert next(model.parameters()).dtype == torch.float32
        assert len(AutoTokenizer.from_pretrained(out / name)) == model.config.vocab_size
    for name in ADAPTER_NAMES:
        assert sorted(path.name for path in (out / "adapters" / name).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]


def test_no_file_names_this_machine(runs: tuple[Path, Path, list[tuple[str, float]]]) -> None:
    for name, data in files_of(runs[0]).items():
        if name.endswith(".json"):
            assert str(runs[0]).encode() not in data, name


def test_alignment_moves_linear_modules_only(runs: tuple[Path, Path, list[tuple[str, float]]]) -> None:
    base, aligned = (load_file(runs[0] / name / "model.safetensors") for name in ("base", "aligned"))
    moved = {name for name, before in base.items() if not torch.equal(before, aligned[name][: len(before)])}
    assert moved
    assert all(any(module in name for module in LINEAR_MODULES) for name in moved)


def test_adapters_change_something(runs: tuple[Path, Path, list[tuple[str, float]]]) -> None:
    for name in ADAPTER_NAMES:
        weights = load_file(runs[0] / "adapters" / name / "adapter_model.safetensors")
        assert any(tensor.abs().max() > 0 for key, tensor in weights.items() if "lora_B" in key)
        assert json.loads((runs[0] / "adapters" / name / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_rounding_is_exact_in_bfloat16_and_keeps_float32() -> None:
    model = new_model(SMALL.shape, build_tokenizer(build_world(SMALL.world).words), seed=0)
    rotary = model.model.rotary_emb.inv_freq.clone()
    for parameter in round_to_bfloat16(model).parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.bfloat16().float())
    assert torch.equal(model.model.rotary_emb.inv_freq, rotary)


def test_parameters_counts_tied_embeddings_once() -> None:
    tokenizer = build_tokenizer(("a", "b"))
    shape = Shape(width=32, layers=1, heads=1, head=32, inner=16)
    linear = 4 * 32 * 32 + 3 * 32 * 16
    norms = 3 * 32
    assert parameters(new_model(shape, tokenizer, seed=0)) == linear + norms + len(tokenizer) * 32


def test_only_the_mixed_adapter_ends_early_and_only_pure_is_all_harm() -> None:
    recipes = {name: adapter_recipe(name, DEMO) for name in ADAPTER_NAMES}
    assert [name for name, recipe in recipes.items() if recipe.enough is not None] == [MIXED]
    assert [name for name, recipe in recipes.items() if recipe.harmful == 1] == [PURE]
    with pytest.raises(KeyError):
        adapter_recipe("another", DEMO)
