"""A verdict in a terminal: remarks, the heat map and the scores, whole at 80 columns for models of any size."""

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from app.observe.verdict_report import WORST_SHOWN, heat_map, notes, score_table, worst_modules

DECODER = "model.layers.0.self_attn.q_proj"
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")
COMPARISONS = ("projection", "alignment", "input")


def verdict(layers: int, prefix: str = "model.layers.") -> dict[str, Any]:
    """A verdict whose deciding scores are all different, with five characters the longest."""
    modules: list[dict[str, Any]] = []
    for layer in range(layers):
        for kind in KINDS:
            score = len(modules) / 10 - 3
            decision = "project" if score > 1.7 else "keep"
            module = {"name": f"{prefix}{layer}.{kind}", "scores": dict.fromkeys(COMPARISONS, score)}
            norms = {"update_norm": 1.5, "v_norm": 12.0, "safe_lora_cosine": -0.123}
            modules.append({**module, **norms, "decision": decision, "reason": "above_tau"})
    total = {"name": "", "modules": 1, "score": 1.0, "expected": 0.5, "update_norm": 1.0, "input_share": 0.1}
    together = {"adapter": total, "blocks": []}
    policy = {"comparison": "input", "tau": 1.7, "max_adapter_score": None, "max_block_score": None}
    return {
        "outcome": "projected",
        "reason": "some",
        "modules": modules,
        "measured": COMPARISONS,
        "policy": policy,
        "together": {"received": together, "kept": together},
    }


def printed(shown: RenderableType, width: int = 80) -> str:
    written = io.StringIO()
    Console(width=width, file=written).print(shown)
    assert max(map(len, written.getvalue().splitlines())) <= width
    assert "…" not in written.getvalue().replace("… and", "")
    return written.getvalue()


@pytest.mark.parametrize("layers", [2, 12, 32, 80])
@pytest.mark.parametrize("width", [60, 80, 400])
def test_the_heat_map_has_every_blocks_numbers_whole(layers: int, width: int) -> None:
    made = verdict(layers)
    words = printed(heat_map(made), width).split()
    for module in made["modules"]:
        shown = f"{module['scores']['input']:.1f}".replace("-0.", "-.")
        assert shown + ("⊥" if module["decision"] == "project" else "") in words
    bands = words.count("q_proj")
    assert [word for word in words if word.isdecimal()] == [str(block) for block in range(layers)]
    assert (bands == 1) == (layers == 2 or (layers, width) in ((12, 80), (12, 400), (32, 400)))


def test_a_module_outside_every_block_has_a_column_of_its_own() -> None:
    made = verdict(1)
    made["modules"].append({**made["modules"][0], "name": "lm_head"})
    assert "–" in printed(heat_map(made)).splitlines()[2]


@pytest.mark.parametrize("prefix", ["model.layers.", "model.language_model.layers."])
def test_scores_are_listed_by_layer_with_the_modules_names_whole(prefix: str) -> None:
    said = printed(score_table(verdict(12, prefix)))
    listed = [word for word in said.split() if word.endswith("q_proj")]
    assert listed == [f"{prefix.removeprefix('model.layers.')}{layer}.self_attn.q_proj" for layer in range(12)]
    assert said.count("-0.123") == 48


def test_the_worst_modules_are_named_whole() -> None:
    made = verdict(32, "model.language_model.layers.")
    said = printed(worst_modules(made), 60)
    assert "model.language_model.layers.31.mlp.down_proj" in said
    condemned = sum(module["decision"] == "project" for module in made["modules"])
    assert f"… and {condemned - WORST_SHOWN} more" in said


def test_an_update_of_zero_everywhere_is_remarked() -> None:
    zero = {"name": DECODER, "update_norm": 0.0}
    assert len(notes({"modules": [zero]})) == 1
    assert notes({"modules": [zero, {"name": DECODER, "update_norm": 1.0}]}) == []
    assert notes({"modules": [{"name": DECODER, "update_norm": None}]}) == []


def test_modules_of_a_tower_are_counted() -> None:
    towers = (
        "visual.blocks.0.attn.qkv",
        "model.vision_tower.encoder.layers.0.mlp.fc1",
        "multi_modal_projector.linear_1",
    )
    (note,) = notes({"modules": [{"name": name, "update_norm": 1.0} for name in (*towers, DECODER)]})
    assert "3 modules" in note
    assert "--enable-tower-connector-lora" in note
    for decision, words in (("prune", ["3 modules are dropped"]), ("reject", [])):
        judged = {"update_norm": 1.0, "reason": "tower", "decision": decision}
        found = notes({"modules": [{"name": name, **judged} for name in towers]})
        assert [word for word, note in zip(words, found, strict=True) if word in note] == words
