import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BAD_TENSOR_NAME, Refused
from app.validate.tensor_names import MAX_NAME_CHARS, Side, parse_tensor_name, prefix_of

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("module", [Q, "model.layers.10.mlp.down_proj", "lm_head", "a_1.0.b"])
def test_names_as_peft_writes_them(module: str, side: str) -> None:
    assert parse_tensor_name(f"base_model.model.{module}.lora_{side}.weight") == (module, Side(side))


WRONG = {
    "empty": "",
    "no_prefix": f"{Q}.lora_A.weight",
    "half_a_prefix": f"model.{Q}.lora_A.weight",
    "other_prefix": f"base_model_model.{Q}.lora_A.weight",
    "no_module": "base_model.model.lora_A.weight",
    "empty_part": "base_model.model.model..q_proj.lora_A.weight",
    "leading_zero": "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
    "negative_index": "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
    "arabic_digit": "base_model.model.model.layers.\u0660.self_attn.q_proj.lora_A.weight",
    "fullwidth_digit": "base_model.model.model.layers.\uff11.self_attn.q_proj.lora_A.weight",
    "huge_index": f"base_model.model.model.layers.{'9' * 400}.q_proj.lora_A.weight",
    "cyrillic": "base_model.model.model.layers.0.self_attn.q_pr\u043ej.lora_A.weight",
    "zero_width": f"base_model.model.{Q}\u200b.lora_A.weight",
    "rtl": f"base_model.model.\u202e{Q}.lora_A.weight",
    "newline_at_the_end": f"base_model.model.{Q}.lora_A.weight\n",
    "nul": f"base_model.model.{Q}\0.lora_A.weight",
    "slash": "base_model.model.../../etc/passwd.lora_A.weight",
    "space": f" base_model.model.{Q}.lora_A.weight",
    "lora_C": f"base_model.model.{Q}.lora_C.weight",
    "lower_case_side": f"base_model.model.{Q}.lora_a.weight",
    "adapter_name": f"base_model.model.{Q}.lora_A.default.weight",
    "bias": f"base_model.model.{Q}.lora_B.bias",
    "plain_weight": f"base_model.model.{Q}.weight",
    "base_layer": "base_model.model.model.embed_tokens.base_layer.weight",
    "embedding": f"base_model.model.{Q}.lora_embedding_A",
    "dora": f"base_model.model.{Q}.lora_magnitude_vector",
    "dora_weight": f"base_model.model.{Q}.lora_magnitude_vector.weight",
    "modules_to_save": "base_model.model.score.modules_to_save.weight",
    "a_megabyte": "base_model.model." + "x" * (1 << 20) + ".lora_A.weight",
}


@pytest.mark.parametrize("name", WRONG.values(), ids=list(WRONG))
@pytest.mark.hostile
def test_refused(name: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_tensor_name(name)
    assert caught.value.code is BAD_TENSOR_NAME
    assert caught.value.param is not None
    assert len(caught.value.message) <= 400


@pytest.mark.parametrize(
    ("name", "word"),
    [("dora", "DoRA"), ("embedding", "embeddings"), ("bias", "biases"), ("adapter_name", "save_pretrained")],
)
def test_common_slips_are_explained(name: str, word: str) -> None:
    with pytest.raises(Refused, match=word):
        parse_tensor_name(WRONG[name])


@given(st.text(max_size=80))
def test_what_is_taken_is_exactly_what_was_meant(text: str) -> None:
    """The grammar is one to one: two names never become the same module and side."""
    for name in (text, f"base_model.model.{text}.lora_A.weight"):
        try:
            module, side = parse_tensor_name(name)
        except Refused as error:
            assert error.code is BAD_TENSOR_NAME
        else:
            assert name == f"base_model.model.{module}.lora_{side}.weight"
            assert name.isascii()


def test_a_long_path_takes_no_long_time() -> None:
    name = "base_model.model." + "a.1." * 110 + "b.lora_A.weighs"
    assert len(name) <= MAX_NAME_CHARS
    with pytest.raises(Refused):
        parse_tensor_name(name)


def test_a_file_without_any_prefix_is_read_as_if_it_had_it() -> None:
    bare = [f"{Q}.lora_{side}.weight" for side in "AB"]
    assert prefix_of(bare) == ""
    assert parse_tensor_name(bare[0], "") == (Q, Side.A)
    assert prefix_of([*bare, f"base_model.model.{Q}.lora_A.weight"]) == "base_model.model."
    with pytest.raises(Refused, match="as others in the file do"):
        parse_tensor_name(bare[0])
