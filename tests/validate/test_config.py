"""The allow-list: each field's neutral values pass, everything else is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BAD_CONFIG, BAD_SCALING, UNSUPPORTED_CONFIG, WRONG_BASE, Code, GatewayError, Refused
from app.validate.config import AdapterConfig, read_config
from app.validate.config_fields import FIELDS, Kind
from tests.support.adapters import PEFT_DEFAULTS

Q = "model.layers.0.self_attn.q_proj"


def read(base_names: frozenset[str] | None = None, **fields: Any) -> AdapterConfig:
    data = json.dumps({**PEFT_DEFAULTS, **fields}).encode()
    return read_config(data, max_bytes=1 << 16, base_names=base_names)


def refusal(**fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        read(**fields)
    return caught.value


def test_what_peft_writes_is_read() -> None:
    config = read(r=16, lora_alpha=32)
    assert (config.r, config.lora_alpha, config.use_rslora) == (16, 32.0, False)
    assert config.scaling_of(Q, 16) == 2.0


def test_every_field_that_peft_writes_is_in_the_table() -> None:
    assert set(PEFT_DEFAULTS) <= set(FIELDS)


def test_a_field_that_must_be_off_says_what_to_do() -> None:
    assert all(field.remedy for field in FIELDS.values() if field.kind is Kind.OFF)


def test_older_peft_wrote_fewer_fields() -> None:
    old = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "bias": "none",
        "target_modules": ["q"],
    }
    config = read_config(json.dumps(old).encode(), max_bytes=1 << 16, base_names=None)
    assert config.scaling_of(Q, 8) == 2.0


def test_rslora_and_patterns() -> None:
    config = read(r=4, lora_alpha=8, use_rslora=True, rank_pattern={Q: 16}, alpha_pattern={Q: 12.0})
    assert config.scaling_of("model.layers.1.self_attn.q_proj", 4) == 4.0
    assert config.ranks_of(Q) == {16}
    assert config.scaling_of(Q, 16) == 3.0


OFF_LISTS = ("modules_to_save", "target_parameters", "layer_replication", "rank_pattern", "alpha_pattern")

NO_ITEMS: list[list[Any]] = [[] for _ in OFF_LISTS]

TAKEN: list[tuple[str, Any]] = [
    ("task_type", None),
    ("lora_alpha", 16.5),
    ("lora_alpha", 1),
    ("init_lora_weights", False),
    ("init_lora_weights", "gaussian"),
    ("target_modules", None),
    ("target_modules", "all-linear"),
    ("target_modules", [Q, "down_proj"]),
    ("target_modules", []),
    ("exclude_modules", ["lm_head"]),
    ("layers_to_transform", 3),
    ("layers_to_transform", [0, 1]),
    ("layers_pattern", "layers"),
    ("layers_pattern", ["layers", "h"]),
    ("lora_dropout", 0.05),
    ("lora_dropout", 1),
    ("rank_pattern", None),
    ("loftq_config", None),
    ("megatron_core", None),
    ("qalora_group_size", None),
    ("revision", "main"),
    ("base_model_name_or_path", None),
    ("base_model_name_or_path", "/etc/passwd"),
    ("base_model_name_or_path", "https://example.org/x"),
    ("of_a_newer_peft", None),
    ("of_a_newer_peft", False),
    ("of_a_newer_peft", {}),
    ("of_a_newer_peft", []),
    ("of_a_newer_peft", ""),
    ("of_a_newer_peft", 0),
    ("vllm_max_position_embeddings", 0),
    *[("init_lora_weights", x) for x in ("eva", "orthogonal", "lora_ga", "EVA", None)],
    *[(x, {"a": 1}) for x in ("eva_config", "lora_ga_config", "auto_mapping", "runtime_config", "metadata")],
    *[("task_type", x) for x in ("SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")],
    *[(x, ".*(a+)+$") for x in ("target_modules", "exclude_modules", "layers_pattern")],
    ("target_modules", ["(a+)+$", "q_proj\n"]),
    *[(x, None) for x in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_dropout", "inference_mode", "bias")],
    *zip(OFF_LISTS, NO_ITEMS, strict=True),
    ("megatron_config", {}),
    ("megatron_core", "megatron.core.tensor_parallel"),
    ("unsloth_version", "2026.9"),
    ("lorap_lr_ratio", 16.0),
    ("rank_pattern", {"q_proj.*": 1, f"^{Q}": 4, "": 2}),
]


@pytest.mark.parametrize(("field", "value"), TAKEN, ids=lambda x: str(x)[:30])
def test_taken(field: str, value: Any) -> None:
    read(**{field: value})


WRONG: list[tuple[str, Any, Code]] = [
    ("peft_type", "IA3", UNSUPPORTED_CONFIG),
    ("peft_type", "lora", UNSUPPORTED_CONFIG),
    ("peft_type", None, UNSUPPORTED_CONFIG),
    ("peft_type", ["LORA"], UNSUPPORTED_CONFIG),
    ("r", 0, BAD_CONFIG),
    ("r", -1, BAD_CONFIG),
    ("r", 4.0, BAD_CONFIG),
    ("r", "4", BAD_CONFIG),
    ("r", True, BAD_CONFIG),
    ("r", None, BAD_CONFIG),
    ("lora_alpha", 0, BAD_SCALING),
    ("lora_alpha", -8, BAD_SCALING),
    ("lora_alpha", 1e30, BAD_SCALING),
    ("lora_alpha", True, BAD_CONFIG),
    ("lora_alpha", "8", BAD_CONFIG),
    ("lora_alpha", None, BAD_CONFIG),
    ("lora_alpha", [8], BAD_CONFIG),
    ("use_rslora", "false", BAD_CONFIG),
    ("use_rslora", 1, BAD_CONFIG),
    ("use_rslora", [], BAD_CONFIG),
    ("rank_pattern", {Q: "1"}, BAD_CONFIG),
    ("rank_pattern", {Q: 0}, BAD_CONFIG),
    ("rank_pattern", [Q], BAD_CONFIG),
    ("alpha_pattern", {Q: 0}, BAD_SCALING),
    ("alpha_pattern", {Q: True}, BAD_CONFIG),
    ("alpha_pattern", "q_proj", BAD_CONFIG),
    ("bias", "all", UNSUPPORTED_CONFIG),
    ("bias", "lora_only", UNSUPPORTED_CONFIG),
    ("fan_in_fan_out", True, UNSUPPORTED_CONFIG),
    ("fan_in_fan_out", "false", BAD_CONFIG),
    *[
        ("init_lora_weights", x, UNSUPPORTED_CONFIG)
        for x in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", 1, ["eva"])
    ],
    *[
        (x, True, UNSUPPORTED_CONFIG)
        for x in ("use_dora", "use_qalora", "lora_bias", "ensure_weight_tying", "use_bdlora")
    ],
    ("use_dora", "false", BAD_CONFIG),
    ("use_dora", 0, BAD_CONFIG),
    ("modules_to_save", ["score"], UNSUPPORTED_CONFIG),
    ("trainable_token_indices", [1], UNSUPPORTED_CONFIG),
    ("target_parameters", ["mlp.experts.gate_up_proj", "mlp.gate.bias"], UNSUPPORTED_CONFIG),
    ("target_parameters", "self_attn.q_proj.weight", UNSUPPORTED_CONFIG),
    ("target_parameters", ["mlp.experts.gate_up_proj_bias"], UNSUPPORTED_CONFIG),
    ("target_parameters", [1], BAD_CONFIG),
    ("layer_replication", [[0, 4]], UNSUPPORTED_CONFIG),
    ("alora_invocation_tokens", [1], UNSUPPORTED_CONFIG),
    ("megatron_core", "os", UNSUPPORTED_CONFIG),
    ("loftq_config", {"loftq_bits": 4}, UNSUPPORTED_CONFIG),
    *[(f"{x}_config", {"a": 1}, UNSUPPORTED_CONFIG) for x in ("corda", "velora", "monteclora", "arrow", "kasa")],
    ("target_modules", [1], BAD_CONFIG),
    ("target_modules", {"q_proj": 1}, BAD_CONFIG),
    ("layers_to_transform", "0", BAD_CONFIG),
    ("layers_to_transform", [True], BAD_CONFIG),
    ("layers_to_transform", [-1], BAD_CONFIG),
    ("lora_dropout", "0.1", BAD_CONFIG),
    ("lora_dropout", 1.5, BAD_CONFIG),
    ("inference_mode", "true", BAD_CONFIG),
    ("revision", 1, BAD_CONFIG),
    ("base_model_name_or_path", ["a"], BAD_CONFIG),
    ("base_model_name_or_path", "x" * 5000, BAD_CONFIG),
    ("vllm_lora_scaling_factor", 8.0, UNSUPPORTED_CONFIG),
    ("custom_code", True, UNSUPPORTED_CONFIG),
    ("auto_map", {"AutoModel": "evil.Model"}, UNSUPPORTED_CONFIG),
    ("unknown", [[]], UNSUPPORTED_CONFIG),
    ("unknown", "text", UNSUPPORTED_CONFIG),
    ("unknown", 1, UNSUPPORTED_CONFIG),
    ("task_type", "EVERYTHING", UNSUPPORTED_CONFIG),
    ("enable_lora", [True, False, True], UNSUPPORTED_CONFIG),
]


@pytest.mark.parametrize(("field", "value", "code"), WRONG, ids=[f"{f}={v!s:.30}" for f, v, _ in WRONG])
@pytest.mark.hostile
def test_refused_by_name(field: str, value: Any, code: Code) -> None:
    error = refusal(**{field: value})
    assert error.code is code
    assert error.param is not None
    assert error.param.startswith(field)


@pytest.mark.parametrize("field", ["peft_type", "r", "lora_alpha"])
@pytest.mark.hostile("C21")
def test_what_decides_must_be_there(field: str) -> None:
    data = json.dumps({k: v for k, v in PEFT_DEFAULTS.items() if k != field}).encode()
    with pytest.raises(Refused) as caught:
        read_config(data, max_bytes=1 << 16, base_names=None)
    assert (caught.value.code, caught.value.param) == (BAD_CONFIG, field)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'"LORA"', b"\xff", b"{", b'{"r": 1, "r": 2}'])
@pytest.mark.hostile("C21")
def test_no_object_no_config(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_config(data, max_bytes=1 << 16, base_names=None)
    assert caught.value.code is BAD_CONFIG


def test_the_base_is_compared_where_the_operator_says_so() -> None:
    names = frozenset({"org/served"})
    read(names, base_model_name_or_path="org/served")
    for other in (None, "org/Served", "/models/served"):
        with pytest.raises(Refused) as caught:
            read(names, base_model_name_or_path=other)
        assert caught.value.code is WRONG_BASE


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*PEFT_DEFAULTS, "unknown"]), anything, max_size=4))
def test_any_values_are_read_or_refused_from_the_table(fields: dict[str, Any]) -> None:
    try:
        config = read(**fields)
    except GatewayError as error:
        assert error.code in (BAD_CONFIG, BAD_SCALING, UNSUPPORTED_CONFIG)
    else:
        assert all(rank > 0 for rank in config.ranks_of(Q))


def test_one_answer_names_every_fault() -> None:
    error = refusal(auto_mapping={"unsloth_fixed": True}, use_dora=True, bias="all", r=0)
    assert {(fault.where, fault.code) for fault in error.details} == {
        ("use_dora", "unsupported_config"),
        ("bias", "unsupported_config"),
        ("r", "bad_config"),
    }
    assert error.details[0].code == error.code.name
    assert all(fault.what_to_do for fault in error.details)
    assert "and 2 more" in error.message


def test_a_git_lfs_pointer_says_which_command_to_run() -> None:
    with pytest.raises(Refused) as caught:
        read_config(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", max_bytes=1 << 16, base_names=None)
    assert "git lfs pull" in caught.value.hint
