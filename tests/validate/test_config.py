"""The allow-list: each field's neutral values pass, everything else is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BAD_CONFIG, BAD_SCALING, UNSUPPORTED_CONFIG, WRONG_BASE, Code, GatewayError, Refused
from app.validate.config import _FIELDS, AdapterConfig, read_config
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
    assert config.scaling_of(Q) == 2.0


def test_every_field_of_the_list_is_one_that_peft_writes_or_wrote() -> None:
    assert set(PEFT_DEFAULTS) == set(_FIELDS)


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
    assert config.scaling_of(Q) == 2.0


def test_rslora_and_patterns() -> None:
    config = read(r=4, lora_alpha=8, use_rslora=True, rank_pattern={Q: 16}, alpha_pattern={Q: 12.0})
    assert config.scaling_of("model.layers.1.self_attn.q_proj") == 4.0
    assert config.rank_of(Q) == 16
    assert config.scaling_of(Q) == 3.0


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
]


@pytest.mark.parametrize(("field", "value"), TAKEN, ids=lambda x: str(x)[:30])
def test_taken(field: str, value: Any) -> None:
    read(**{field: value})


WRONG: list[tuple[str, Any, Code]] = [
    ("peft_type", "IA3", UNSUPPORTED_CONFIG),
    ("peft_type", "lora", UNSUPPORTED_CONFIG),
    ("peft_type", None, UNSUPPORTED_CONFIG),
    ("peft_type", ["LORA"], UNSUPPORTED_CONFIG),
    ("task_type", "SEQ_CLS", UNSUPPORTED_CONFIG),
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
    ("use_rslora", None, BAD_CONFIG),
    ("rank_pattern", {"q_proj.*": 1}, UNSUPPORTED_CONFIG),
    ("rank_pattern", {f"^{Q}": 1}, UNSUPPORTED_CONFIG),
    ("rank_pattern", {"": 1}, UNSUPPORTED_CONFIG),
    ("rank_pattern", {Q: "1"}, BAD_CONFIG),
    ("rank_pattern", {Q: 0}, BAD_CONFIG),
    ("rank_pattern", [Q], BAD_CONFIG),
    ("alpha_pattern", {".*": 8000}, UNSUPPORTED_CONFIG),
    ("alpha_pattern", {"(a+)+$": 8}, UNSUPPORTED_CONFIG),
    ("alpha_pattern", {Q: 0}, BAD_SCALING),
    ("alpha_pattern", {Q: True}, BAD_CONFIG),
    ("alpha_pattern", "q_proj", BAD_CONFIG),
    ("bias", "all", UNSUPPORTED_CONFIG),
    ("bias", "lora_only", UNSUPPORTED_CONFIG),
    ("bias", None, UNSUPPORTED_CONFIG),
    ("fan_in_fan_out", True, UNSUPPORTED_CONFIG),
    ("fan_in_fan_out", "false", BAD_CONFIG),
    *[
        ("init_lora_weights", x, UNSUPPORTED_CONFIG)
        for x in ("pissa", "olora", "corda", "eva", "loftq", "lora_ga", 1, None)
    ],
    *[
        (x, True, UNSUPPORTED_CONFIG)
        for x in ("use_dora", "use_qalora", "lora_bias", "ensure_weight_tying", "use_bdlora")
    ],
    ("use_dora", "false", BAD_CONFIG),
    ("use_dora", 0, BAD_CONFIG),
    ("modules_to_save", ["score"], UNSUPPORTED_CONFIG),
    ("modules_to_save", [], UNSUPPORTED_CONFIG),
    ("trainable_token_indices", [1], UNSUPPORTED_CONFIG),
    ("target_parameters", ["mlp.experts.gate_up_proj"], UNSUPPORTED_CONFIG),
    ("layer_replication", [[0, 4]], UNSUPPORTED_CONFIG),
    ("alora_invocation_tokens", [1], UNSUPPORTED_CONFIG),
    ("auto_mapping", {"parent_library": "os", "base_model_class": "system"}, UNSUPPORTED_CONFIG),
    ("megatron_config", {}, UNSUPPORTED_CONFIG),
    ("megatron_core", "os", UNSUPPORTED_CONFIG),
    ("loftq_config", {"loftq_bits": 4}, UNSUPPORTED_CONFIG),
    *[(f"{x}_config", {"a": 1}, UNSUPPORTED_CONFIG) for x in ("eva", "corda", "lora_ga", "velora", "arrow", "kasa")],
    ("target_modules", ".*q_proj", UNSUPPORTED_CONFIG),
    ("target_modules", "q_proj", UNSUPPORTED_CONFIG),
    ("target_modules", ["(a+)+$"], UNSUPPORTED_CONFIG),
    ("target_modules", ["q_proj\n"], UNSUPPORTED_CONFIG),
    ("target_modules", [1], BAD_CONFIG),
    ("target_modules", {"q_proj": 1}, BAD_CONFIG),
    ("exclude_modules", "(a+)+$", UNSUPPORTED_CONFIG),
    ("layers_to_transform", "0", BAD_CONFIG),
    ("layers_to_transform", [True], BAD_CONFIG),
    ("layers_to_transform", [-1], BAD_CONFIG),
    ("layers_pattern", ".*", UNSUPPORTED_CONFIG),
    ("lora_dropout", "0.1", BAD_CONFIG),
    ("lora_dropout", 1.5, BAD_CONFIG),
    ("inference_mode", "true", BAD_CONFIG),
    ("revision", 1, BAD_CONFIG),
    ("base_model_name_or_path", ["a"], BAD_CONFIG),
    ("base_model_name_or_path", "x" * 5000, BAD_CONFIG),
    ("vllm_lora_scaling_factor", 8.0, UNSUPPORTED_CONFIG),
    ("vllm_max_position_embeddings", 0, UNSUPPORTED_CONFIG),
    ("custom_code", True, UNSUPPORTED_CONFIG),
    ("auto_map", {"AutoModel": "evil.Model"}, UNSUPPORTED_CONFIG),
    ("unknown", "", UNSUPPORTED_CONFIG),
    ("unknown", [[]], UNSUPPORTED_CONFIG),
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
        assert config.scaling_of(Q) > 0
