"""Patterns against PEFT's and vLLM's own readings: never another value than theirs, and never an expression evaluated."""

import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from vllm.lora.peft_helper import PEFTHelper

from app.domain.errors import UNSUPPORTED_CONFIG, Refused
from app.validate.patterns import MAX_EXPRESSIONS, Key, Pattern
from tests.validate.test_config import read

Q = "model.layers.1.self_attn.q_proj"
NAMES = (
    Q,
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.mlp_up_proj",
    "model.layers.1.cross_attn.xq_proj",
    "q_proj",
    "lm_head",
)
KEYS = (
    Q,
    "q_proj",
    "self_attn.q_proj",
    "layers.1.self_attn.q_proj",
    "1.self_attn.q_proj",
    "mlp.up_proj",
    r"mlp\.up_proj",
    r".*\.q_proj",
    r".*\.mlp.up_proj$",
    "q_proj$",
    "proj",
    "lm_head",
    r".*\.lm_head",
    "Q_PROJ",
    "-",
    ".",
)


def peft_reads(pattern: Mapping[str, float], module: str, otherwise: float) -> float:
    return pattern.get(get_pattern_key(list(pattern), module), otherwise)


@pytest.mark.parametrize("key", KEYS)
def test_a_plain_key_matches_as_in_peft_and_vllm(key: str) -> None:
    for name in NAMES:
        ours = Key.of(key).matches(name)
        assert ours == (PEFTHelper._match_pattern({key: 1}, name) == 1)
        assert ours == (peft_reads({key: 1.0}, name, 0.0) == 1.0)


@given(
    st.dictionaries(
        st.text("q_pro.j1\\-*$", min_size=1, max_size=8) | st.sampled_from(KEYS), st.integers(1, 9), max_size=4
    ),
    st.sampled_from(NAMES),
)
@example({"q_proj": 2, Q: 3}, Q)
@example({Q: 3, "q_proj": 2}, Q)
def test_what_is_settled_is_what_both_read(pattern: dict[str, int], module: str) -> None:
    try:
        theirs = peft_reads(pattern, module, 5)
    except re.error:  # not an expression at all: PEFT would fail on it
        return
    assert theirs in {one.value for one in Pattern.of(pattern).readings(module, 5, {})}
    config = read(lora_alpha=5, r=1, alpha_pattern=pattern)
    try:
        settled = config.scaling_of(module, 1)
    except Refused as error:
        assert error.code is UNSUPPORTED_CONFIG
        assert any(Key.of(key).text is None for key in pattern)
    else:
        assert settled == theirs


LAYER_1 = r".*\.layers\.1\..*(q_proj|k_proj|v_proj|o_proj)$"


def test_the_rank_tells_where_an_expression_matched() -> None:
    """As axolotl writes them: the same expression for rank and alpha, so that the tensors show where it matched."""
    config = read(r=8, lora_alpha=16, rank_pattern={LAYER_1: 32}, alpha_pattern={LAYER_1: 128})
    assert config.ranks_of(Q) == {8, 32}
    assert config.scaling_of(Q, 32) == 4.0
    assert config.scaling_of("model.layers.0.self_attn.q_proj", 8) == 2.0


def test_an_alpha_that_only_the_expression_tells_is_refused_with_both_readings() -> None:
    for ranks in ({}, {LAYER_1: 8}, {"another.*": 32}):
        config = read(r=8, lora_alpha=16, rank_pattern=ranks, alpha_pattern={LAYER_1: 128})
        with pytest.raises(Refused) as caught:
            config.scaling_of(Q, 8)
        assert caught.value.code is UNSUPPORTED_CONFIG
        for word in (Q, "128", "16"):
            assert word in caught.value.message


def test_a_full_name_before_the_expression_settles_it() -> None:
    config = read(r=8, lora_alpha=16, alpha_pattern={Q: 8, LAYER_1: 128})
    assert config.scaling_of(Q, 8) == 1.0


def test_an_expression_that_says_the_same_need_not_be_evaluated() -> None:
    assert read(r=8, lora_alpha=16, alpha_pattern={LAYER_1: 16}).scaling_of(Q, 8) == 2.0


@pytest.mark.hostile("C10")
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_expressions_are_counted(field: str) -> None:
    many: dict[str, Any] = {field: {f"(a{i}+)+$": 4 for i in range(MAX_EXPRESSIONS)}}
    assert read(**many)
    many[field]["(b+)+$"] = 4
    with pytest.raises(Refused) as caught:
        read(**many)
    assert caught.value.code is UNSUPPORTED_CONFIG


@pytest.mark.hostile("C10")
def test_the_most_keys_take_no_long_time() -> None:
    """A configuration full of keys, on a model of a thousand modules."""
    config = read(r=4, lora_alpha=8, alpha_pattern={f"{i}.q_proj": 8 for i in range(3000)})
    began = time.process_time()
    for i in range(1000):
        assert config.scaling_of(f"model.layers.{i}.self_attn.q_proj", 4) == 2.0
    assert time.process_time() - began < 10
