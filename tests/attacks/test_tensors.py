"""Tensor names and values (hostile.md K)."""

import time
from pathlib import Path

import pytest
import torch

from app.domain.errors import (
    BAD_DTYPE,
    BAD_TENSOR_NAME,
    EMPTY_ADAPTER,
    NOT_FINITE,
    RANK_TOO_HIGH,
    UNKNOWN_MODULE,
    UNPAIRED_TENSOR,
    WRONG_SHAPE,
    Code,
)
from app.domain.lora import ServingDtype
from tests.attacks.gate import must_refuse, push
from tests.support.adapters import Upload, key, target

VALID = Upload.valid()
Q = "model.layers.0.self_attn.q_proj"
QA, QB = key(Q, "A"), key(Q, "B")
EVIL = torch.ones(4, 16)
HALF = Upload.valid(target(dtype=ServingDtype.FLOAT16))


def pair(module: str) -> Upload:
    """The valid upload and one more module, shaped like q_proj."""
    return VALID.adding({key(module, "A"): torch.ones(4, 16), key(module, "B"): torch.ones(16, 4)})


def all_renamed(old: str, new: str) -> Upload:
    return Upload(VALID.model, VALID.config, {name.replace(old, new): t for name, t in VALID.tensors.items()})


ATTACKS: list[tuple[str, Upload, Code]] = [
    ("K01_half_a_prefix", all_renamed("base_model.model.", "base_model."), UNKNOWN_MODULE),
    ("K02_unprefixed_twin", VALID.adding({QA.removeprefix("base_model.model."): EVIL}), BAD_TENSOR_NAME),
    ("K03_doubled_prefix", all_renamed("base_model.model.", "base_model.model.base_model.model."), UNKNOWN_MODULE),
    ("K05_embedding_half", VALID.renaming(QB, f"base_model.model.{Q}.lora_embedding_B"), BAD_TENSOR_NAME),
    ("K07_layer_999", pair("model.layers.999.self_attn.q_proj"), UNKNOWN_MODULE),
    ("K07_layer_2_of_2", pair("model.layers.2.self_attn.q_proj"), UNKNOWN_MODULE),
    ("K07_layer_00", pair("model.layers.00.self_attn.q_proj"), BAD_TENSOR_NAME),
    ("K07_arabic_digit", pair("model.layers.\u0660.self_attn.q_proj"), BAD_TENSOR_NAME),
    ("K07_minus_1", pair("model.layers.-1.self_attn.q_proj"), BAD_TENSOR_NAME),
    ("K09_path_of_its_own", pair("evil.path.q_proj"), UNKNOWN_MODULE),
    ("K09_suffix_only", pair("q_proj"), UNKNOWN_MODULE),
    (
        "K11_full_embedding",
        VALID.adding({"base_model.model.model.embed_tokens.base_layer.weight": EVIL}),
        BAD_TENSOR_NAME,
    ),
    ("K12_full_weight", VALID.adding({f"base_model.model.{Q}.weight": torch.ones(16, 16)}), BAD_TENSOR_NAME),
    ("K12_magnitude", VALID.adding({f"base_model.model.{Q}.lora_magnitude_vector.weight": EVIL}), BAD_TENSOR_NAME),
    ("K12_adapter_name", all_renamed("lora_A.weight", "lora_A.default.weight"), BAD_TENSOR_NAME),
    ("K12_lora_bias", VALID.adding({f"base_model.model.{Q}.lora_B.bias": EVIL}), BAD_TENSOR_NAME),
    ("K12_bias", VALID.adding({f"base_model.model.{Q}.bias": EVIL}), BAD_TENSOR_NAME),
    ("K13_embed_tokens", pair("model.embed_tokens"), UNKNOWN_MODULE),
    ("K13_lm_head", pair("lm_head"), UNKNOWN_MODULE),
    ("K15_A_without_B", VALID.dropping(QB), UNPAIRED_TENSOR),
    ("K15_B_without_A", VALID.dropping(QA), UNPAIRED_TENSOR),
    ("K17_rank_512", Upload.valid(rank=512, alpha=512), RANK_TOO_HIGH),
    ("K17_rank_one_over", Upload.valid(rank=9), RANK_TOO_HIGH),
    (
        "K17_one_module_over",
        VALID.having(rank_pattern={Q: 16}).adding({QA: torch.ones(16, 16), QB: torch.ones(16, 16)}),
        RANK_TOO_HIGH,
    ),
    ("K18_in_1", VALID.adding({QA: torch.ones(4, 1)}), WRONG_SHAPE),
    ("K18_out_smaller", VALID.adding({QB: torch.ones(15, 4)}), WRONG_SHAPE),
    ("K18_transposed", VALID.adding({QA: torch.ones(16, 4)}), WRONG_SHAPE),
    ("K18_ranks_differ", VALID.adding({QB: torch.ones(16, 3)}), WRONG_SHAPE),
    ("K20_int8", VALID.adding({QA: torch.full((4, 16), 127, dtype=torch.int8)}), BAD_DTYPE),
    ("K20_bool", VALID.adding({QA: torch.ones(4, 16, dtype=torch.bool)}), BAD_DTYPE),
    ("K20_complex", VALID.adding({QA: torch.ones(4, 16, dtype=torch.complex64)}), BAD_DTYPE),
    ("K21_inf_in_half", HALF.adding({QA: torch.full((4, 16), 1e6)}), NOT_FINITE),
    ("K21_inf_once_scaled", HALF.adding({QB: torch.full((16, 4), 40_000.0)}), NOT_FINITE),
    ("K21_f64", HALF.adding({QA: torch.full((4, 16), 1e300, dtype=torch.float64)}), NOT_FINITE),
    ("K22_nothing", VALID.dropping(*VALID.tensors), EMPTY_ADAPTER),
    ("K23_experts", pair("model.layers.0.mlp.experts.0.down_proj"), UNKNOWN_MODULE),
    ("K23_mtp", pair("model.mtp.layers.0.self_attn.q_proj"), UNKNOWN_MODULE),
    ("K24_case", pair("model.layers.0.self_attn.Q_PROJ"), UNKNOWN_MODULE),
    ("K24_cyrillic", pair("model.layers.0.self_attn.q_pr\u043ej"), BAD_TENSOR_NAME),
    ("K24_zero_width", pair("model.layers.0.self_attn.q_proj\u200b"), BAD_TENSOR_NAME),
    ("K24_rtl", pair("\u202emodel.layers.0.self_attn.q_proj"), BAD_TENSOR_NAME),
    ("K24_fullwidth", pair("model.layers.0.self_attn.\uff51_proj"), BAD_TENSOR_NAME),
]


@pytest.mark.parametrize(("upload", "code"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
@pytest.mark.hostile
def test_refused(tmp_path: Path, upload: Upload, code: Code) -> None:
    must_refuse(tmp_path, upload, code)


@pytest.mark.ruling("K01")
def test_k01_a_file_without_any_prefix_is_the_same_adapter(tmp_path: Path) -> None:
    bare = push(tmp_path / "bare", all_renamed("base_model.model.", ""))
    for ours, theirs in zip(bare.modules, push(tmp_path / "full", VALID).modules, strict=True):
        assert ours.name == theirs.name
        assert torch.equal(ours.a, theirs.a)
        assert torch.equal(ours.b, theirs.b)


@pytest.mark.hostile("K09")
def test_k09_thousands_of_strange_modules_take_no_long_time(tmp_path: Path) -> None:
    """Each has another last name: naming the nearest module of a thousand for each would take minutes."""
    large = Upload.valid(target(layers=300))
    strange = {key(f"model.layers.0.x{i}", side): torch.ones(1, 1) for i in range(5000) for side in "AB"}
    began = time.process_time()
    error = must_refuse(tmp_path, large.adding(strange), UNKNOWN_MODULE)
    assert time.process_time() - began < 10
    assert len(error.details) == 16
    assert "and 9983 more" in error.message


@pytest.mark.ruling("K14")
def test_k14_missing_modules_are_fine(tmp_path: Path) -> None:
    upload = VALID.dropping(QA, QB)
    assert Q not in [m.name for m in push(tmp_path, upload).modules]


@pytest.mark.ruling("K21")
def test_k21_what_underflows_is_measured_as_the_zero_it_is_served_as(tmp_path: Path) -> None:
    module = next(m for m in push(tmp_path, HALF.adding({QB: torch.full((16, 4), 1e-9)})).modules if m.name == Q)
    assert not module.b.any()
