"""adapter_config.json (hostile.md C)."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import (
    BAD_CONFIG,
    BAD_SCALING,
    TOO_LARGE,
    UNSUPPORTED_CONFIG,
    WRONG_BASE,
    WRONG_SHAPE,
    Code,
)
from app.validate.adapter import ValidateLimits
from tests.attacks.gate import must_refuse, push
from tests.support.adapters import Upload, check

VALID = Upload.valid()
TEXT = VALID.config_bytes
Q = "model.layers.0.self_attn.q_proj"
REDOS = "(a+)+$" + "a" * 60

FIELDS: list[tuple[str, dict[str, Any], Code]] = [
    ("C02_nan", {"lora_alpha": float("nan")}, BAD_CONFIG),
    ("C02_infinity", {"lora_alpha": float("inf")}, BAD_CONFIG),
    ("C04_alpha_1e30", {"lora_alpha": 1e30}, BAD_SCALING),
    ("C04_alpha_over_limit", {"lora_alpha": 1000}, BAD_SCALING),
    ("C04_alpha_0", {"lora_alpha": 0}, BAD_SCALING),
    ("C04_alpha_minus_0", {"lora_alpha": -0.0}, BAD_SCALING),
    ("C04_alpha_negative", {"lora_alpha": -8}, BAD_SCALING),
    ("C04_alpha_true", {"lora_alpha": True}, BAD_CONFIG),
    ("C04_alpha_text", {"lora_alpha": "8"}, BAD_CONFIG),
    ("C07_alpha_for_all", {"alpha_pattern": {".*": 8000}}, UNSUPPORTED_CONFIG),
    ("C07_alpha_anchored", {"alpha_pattern": {f"^{Q}": 9}}, UNSUPPORTED_CONFIG),
    ("C07_alpha_suffix_smuggled", {"alpha_pattern": {"q_proj": 8000}}, BAD_SCALING),
    ("C07_alpha_redos", {"alpha_pattern": {REDOS: 9}}, UNSUPPORTED_CONFIG),
    ("C07_alpha_many", {"alpha_pattern": {f"(a{i}+)+$": 9 for i in range(3000)}}, UNSUPPORTED_CONFIG),
    ("C07_alpha_smuggled", {"alpha_pattern": {Q: 8000}}, BAD_SCALING),
    ("C07_alpha_negative", {"alpha_pattern": {Q: -1}}, BAD_SCALING),
    ("C08_rank_suffix", {"rank_pattern": {"q_proj": 1}}, WRONG_SHAPE),
    ("C08_rank_many", {"rank_pattern": {f"(a{i}+)+$": 4 for i in range(3000)}}, UNSUPPORTED_CONFIG),
    ("C08_rank_smuggled", {"rank_pattern": {Q: 1}}, WRONG_SHAPE),
    ("C08_r_smuggled", {"r": 1}, WRONG_SHAPE),
    ("C10_targets_of_another_type", {"target_modules": {"q_proj": REDOS}}, BAD_CONFIG),
    ("C11_rslora_text", {"use_rslora": "false"}, BAD_CONFIG),
    ("C11_rslora_1", {"use_rslora": 1}, BAD_CONFIG),
    ("C11_rslora_list", {"use_rslora": []}, BAD_CONFIG),
    ("C12_dora", {"use_dora": True}, UNSUPPORTED_CONFIG),
    ("C12_lora_bias", {"lora_bias": True}, UNSUPPORTED_CONFIG),
    ("C12_bias_all", {"bias": "all"}, UNSUPPORTED_CONFIG),
    ("C12_alora", {"alora_invocation_tokens": [1, 2]}, UNSUPPORTED_CONFIG),
    ("C12_layer_replication", {"layer_replication": [[0, 2], [1, 2]]}, UNSUPPORTED_CONFIG),
    ("C12_qalora", {"use_qalora": True}, UNSUPPORTED_CONFIG),
    ("C12_corda", {"corda_config": {"cache_file": "/etc/passwd"}}, UNSUPPORTED_CONFIG),
    ("C12_loftq", {"loftq_config": {"loftq_bits": 4}}, UNSUPPORTED_CONFIG),
    ("C12_pissa", {"init_lora_weights": "pissa"}, UNSUPPORTED_CONFIG),
    ("C12_pissa_niter", {"init_lora_weights": "pissa_niter_99999999"}, UNSUPPORTED_CONFIG),
    ("C14_modules_to_save", {"modules_to_save": ["score"]}, UNSUPPORTED_CONFIG),
    ("C15_tokens", {"trainable_token_indices": {"embed_tokens": [1]}}, UNSUPPORTED_CONFIG),
    ("C15_parameters", {"target_parameters": ["experts.gate_up_proj"]}, UNSUPPORTED_CONFIG),
    ("C16_megatron_config", {"megatron_config": {"a": 1}}, UNSUPPORTED_CONFIG),
    ("C16_megatron_core", {"megatron_core": "os"}, UNSUPPORTED_CONFIG),
    ("C16_custom_code", {"custom_code": "x.py"}, UNSUPPORTED_CONFIG),
    ("C16_auto_map", {"auto_map": {"AutoConfig": "x.Y"}}, UNSUPPORTED_CONFIG),
    ("C17_base_huge", {"base_model_name_or_path": "x" * 10_000}, BAD_CONFIG),
    ("C17_base_list", {"base_model_name_or_path": ["/etc"]}, BAD_CONFIG),
    ("C18_ia3", {"peft_type": "IA3"}, UNSUPPORTED_CONFIG),
    ("C18_loha", {"peft_type": "LOHA"}, UNSUPPORTED_CONFIG),
    ("C18_case", {"peft_type": "lora"}, UNSUPPORTED_CONFIG),
    ("C20_vllm_scaling", {"vllm_lora_scaling_factor": 8.0}, UNSUPPORTED_CONFIG),
    ("C20_vllm_positions", {"vllm_max_position_embeddings": 10**9}, UNSUPPORTED_CONFIG),
    ("C20_unknown", {"x" * 300: "y"}, UNSUPPORTED_CONFIG),
    ("C20_unknown_number", {"some_new_scale": 2}, UNSUPPORTED_CONFIG),
]


@pytest.mark.parametrize(("fields", "code"), [f[1:] for f in FIELDS], ids=[f[0] for f in FIELDS])
@pytest.mark.hostile
def test_fields(tmp_path: Path, fields: dict[str, Any], code: Code) -> None:
    start = time.process_time()
    must_refuse(tmp_path, VALID.having(**fields), code)
    assert time.process_time() - start < 2


def spliced(text: str) -> bytes:
    """The valid configuration with more text at its beginning."""
    return TEXT.replace(b"{", b"{" + text.encode(), 1)


RAW: list[tuple[str, bytes, Code]] = [
    ("C01_r_twice", spliced('"r": 1, '), BAD_CONFIG),
    ("C01_alpha_twice_escaped", spliced('"lora_\\u0061lpha": 8000, '), BAD_CONFIG),
    ("C02_1e999", spliced('"extra": 1e999, '), BAD_CONFIG),
    ("C02_minus_infinity", spliced('"extra": -Infinity, '), BAD_CONFIG),
    ("C03_4301_digits", spliced('"extra": ' + "1" * 4301 + ", "), BAD_CONFIG),
    ("C03_deep_lists", b"[" * 30_000 + b"]" * 30_000, BAD_CONFIG),
    ("C03_deep_objects", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, BAD_CONFIG),
    ("C03_bom", b"\xef\xbb\xbf" + TEXT, BAD_CONFIG),
    ("C03_trailing_nul", TEXT + b"\0", BAD_CONFIG),
    ("C03_over_64_KiB", TEXT + b" " * 65_536, TOO_LARGE),
    ("C03_50_MB", b'{"a": "' + b"x" * 50_000_000 + b'"}', TOO_LARGE),
    ("C18_no_peft_type", VALID.without("peft_type").config_bytes, BAD_CONFIG),
    ("C21_missing_r", VALID.without("r").config_bytes, BAD_CONFIG),
    ("C21_empty", b"", BAD_CONFIG),
    ("C21_array", b"[" + TEXT + b"]", BAD_CONFIG),
    ("C21_null", b"null", BAD_CONFIG),
    ("C21_text", b'"LORA"', BAD_CONFIG),
    ("C21_utf16", TEXT.decode().encode("utf-16"), BAD_CONFIG),
    ("C21_latin1", TEXT.replace(b"served-model", b"mod\xe8le"), BAD_CONFIG),
    ("C21_two_objects", TEXT + TEXT, BAD_CONFIG),
    ("C21_a_pickle", b"\x80\x04}.", BAD_CONFIG),
]


@pytest.mark.parametrize(("config", "code"), [r[1:] for r in RAW], ids=[r[0] for r in RAW])
@pytest.mark.hostile
def test_bytes(tmp_path: Path, config: bytes, code: Code) -> None:
    must_refuse(tmp_path, VALID, code, config=config)


LIES = ["/etc/passwd", "https://169.254.169.254/latest", "org/another", "../../x", "served"]


@pytest.mark.parametrize("base", LIES, ids=[f"C17_{lie}" for lie in LIES])
@pytest.mark.hostile("C17")
def test_c17_the_base_is_compared_or_irrelevant(tmp_path: Path, base: str) -> None:
    upload = VALID.having(base_model_name_or_path=base)
    must_refuse(tmp_path / "a", upload, WRONG_BASE, rules=ValidateLimits(base_names=frozenset({"org/served"})))
    push(tmp_path / "b", upload)


@pytest.mark.parametrize("base", LIES, ids=[f"C17_{lie}" for lie in LIES])
@pytest.mark.ruling("C10", "C16", "C17")
def test_c10_c16_c17_and_never_followed_or_evaluated(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file opened, nothing listed, no address looked up, no module imported by name while one is validated."""

    def caught(*args: object, **_: object) -> None:
        raise AssertionError(f"something was followed: {args}")

    upload = VALID.having(
        base_model_name_or_path=base,
        revision=base,
        auto_mapping={"base_model_class": "system", "parent_library": "os"},
        **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), REDOS),
        rank_pattern={REDOS: 4},
        alpha_pattern={REDOS: 8},  # as elsewhere: it does not matter where it matches
    )
    config, weights = upload.config_bytes, upload.weights_bytes
    with monkeypatch.context() as patched:
        for where in (
            "builtins.open",
            "os.open",
            "os.stat",
            "os.scandir",
            "socket.getaddrinfo",
            "re.compile",
            "importlib.import_module",
        ):
            patched.setattr(where, caught)
        adapter = check(config, weights, upload.model)
    assert adapter.modules


def test_a_configuration_at_its_cap_is_read(tmp_path: Path) -> None:
    config = TEXT + b" " * (65_536 - len(TEXT))
    assert push(tmp_path, VALID, config=config).modules
    assert json.loads(config) == VALID.config
