"""Remarks on what is served without the effect that its owner may expect."""

from app.observe.verdict_report import notes

DECODER = "model.layers.0.self_attn.q_proj"


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
