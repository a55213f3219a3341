"""Spellings of modules: one to one, as vLLM's classes map them, and none where two modules would fit."""

import pytest

from app.domain.spellings import Spellings, common_name

TAIL = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize("model", ["model", "language_model.model", "model.language_model", "backbone"])
@pytest.mark.parametrize("upload", ["model", "language_model.model", "model.language_model", "backbone"])
def test_a_decoders_modules_are_found_by_any_spelling(model: str, upload: str) -> None:
    assert Spellings([f"{model}.{TAIL}"]).find(f"{upload}.{TAIL}") == f"{model}.{TAIL}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.vision_tower.blocks.0.qkv", "vision_tower.blocks.0.qkv"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.vision_model.encoder.layers.0.mlp.fc1"),
        ("model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"),
        ("model.multi_modal_projector.linear_1", "multi_modal_projector.linear_1"),
        ("lm_head", "language_model.lm_head"),
        ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"),
        ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.router"),
    ],
)
def test_towers_and_heads_too(one: str, other: str) -> None:
    assert Spellings([one]).find(other) == one
    assert Spellings([other]).find(one) == other


@pytest.mark.parametrize(
    "stranger", [TAIL, f"base_model.model.model.{TAIL}", f"model.mtp.{TAIL}", f"evil.{TAIL}", f"model.model.{TAIL}"]
)
def test_no_other_name_is_a_spelling(stranger: str) -> None:
    assert Spellings([f"model.{TAIL}"]).find(stranger) is None


def test_a_tower_is_never_the_decoder() -> None:
    assert Spellings([f"model.{TAIL}"]).find(f"model.vision_tower.{TAIL}") is None
    assert Spellings([f"vision_tower.{TAIL}"]).find(f"model.{TAIL}") is None


def test_a_spelling_that_would_fit_two_modules_fits_neither() -> None:
    both = Spellings([f"model.{TAIL}", f"language_model.model.{TAIL}"])
    assert both.find(f"model.language_model.{TAIL}") is None
    assert both.find(f"model.{TAIL}") == f"model.{TAIL}"


def test_the_common_name_is_its_own() -> None:
    for name in (TAIL, f"language_model.model.{TAIL}", f"model.visual.{TAIL}"):
        assert common_name(common_name(name)) == common_name(name)
