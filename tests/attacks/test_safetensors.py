"""The safetensors container (hostile.md S) and tensor values, through the whole way in."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.errors import BAD_DTYPE, BAD_SAFETENSORS, BAD_TENSOR_NAME, NOT_FINITE, UNKNOWN_MODULE, WRONG_SHAPE, Code
from app.domain.lora import ServingDtype
from app.validate.safetensors_header import MAX_HEADER_BYTES
from tests.attacks.gate import must_refuse, push
from tests.support.adapters import Upload, key, parts_of, raw, target

VALID = Upload.valid()
WEIGHTS = VALID.weights_bytes
Q = "model.layers.0.self_attn.q_proj"
QA, QB = key(Q, "A"), key(Q, "B")


def changed(change: Callable[[dict[str, Any]], None], extra: bytes = b"") -> bytes:
    """The valid file with a changed header, and bytes after its data."""
    header, data = parts_of(WEIGHTS)
    change(header)
    return raw(header, data + extra)


def with_text(old: str, new: str, count: int = 1) -> bytes:
    """The valid file with its header's text changed, so that JSON itself may break."""
    header, data = parts_of(WEIGHTS)
    text = json.dumps(header)
    assert old in text
    return raw(text.replace(old, new, count).encode("utf-8", "surrogatepass"), data)


def setting(name: str, **fields: Any) -> bytes:
    return changed(lambda h: h[name].update(fields))


def adding(name: str, **fields: Any) -> bytes:
    return changed(lambda h: h.update({name: fields}))


def swapped() -> bytes:
    def swap(header: dict[str, Any]) -> None:
        header[QA]["data_offsets"].reverse()

    return changed(swap)


def of_dtype(dtype: str, size: float) -> bytes:
    """A file whose every tensor has this dtype, at its right size."""
    header, data, at = {}, b"", 0
    for name, tensor in VALID.tensors.items():
        count = int(tensor.numel() * size)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + count]}
        data, at = data + bytes(count), at + count
    return raw(header, data)


def first_span() -> list[int]:
    header, _ = parts_of(WEIGHTS)
    span: list[int] = header[QA]["data_offsets"]
    return span


ENTRY = json.dumps(parts_of(WEIGHTS)[0][QA])
DEEP = 100_000

ATTACKS: list[tuple[str, bytes, Code]] = [
    ("S01_empty_file", b"", BAD_SAFETENSORS),
    ("S01_seven_bytes", WEIGHTS[:7], BAD_SAFETENSORS),
    ("S01_length_beyond_file", struct.pack("<Q", len(WEIGHTS)) + WEIGHTS[8:], BAD_SAFETENSORS),
    ("S01_length_2_63", struct.pack("<Q", 1 << 63) + WEIGHTS[8:], BAD_SAFETENSORS),
    ("S01_length_over_100_MB", struct.pack("<Q", 100_000_001) + WEIGHTS[8:], BAD_SAFETENSORS),
    ("S01_length_zero", struct.pack("<Q", 0) + WEIGHTS[8:], BAD_SAFETENSORS),
    ("S02_header_of_30_MB", raw(b'{"__metadata__":{"a":"' + b"x" * 30_000_000 + b'"}}'), BAD_SAFETENSORS),
    ("S02_a_million_values", raw(b'{"__metadata__":[' + b"[]," * 1_000_000 + b"0]}"), BAD_SAFETENSORS),
    ("S03_trailing_bytes", WEIGHTS + b"\0", BAD_SAFETENSORS),
    ("S03_truncated_by_one", WEIGHTS[:-1], BAD_SAFETENSORS),
    ("S03_truncated_by_half", WEIGHTS[: len(WEIGHTS) // 2], BAD_SAFETENSORS),
    (
        "S03_hole",
        adding(key("model.layers.9.q", "A"), dtype="F32", shape=[1, 1], data_offsets=[10**6, 10**6 + 4]),
        BAD_SAFETENSORS,
    ),
    ("S03_same_span_twice", adding("b", dtype="F32", shape=[4, 16], data_offsets=first_span()), BAD_SAFETENSORS),
    ("S03_negative", setting(QA, data_offsets=[-256, 0]), BAD_SAFETENSORS),
    ("S03_end_before_begin", swapped(), BAD_SAFETENSORS),
    ("S05_shape_lies", setting(QA, shape=[5, 16]), BAD_SAFETENSORS),
    ("S05_product_overflows", setting(QA, shape=[1 << 40, 1 << 40]), BAD_SAFETENSORS),
    ("S07_rank_0", setting(QA, shape=[]), WRONG_SHAPE),
    ("S07_rank_1", setting(QA, shape=[64]), WRONG_SHAPE),
    ("S07_rank_64", setting(QA, shape=[1] * 62 + [4, 16]), WRONG_SHAPE),
    ("S07_rank_10000", setting(QA, shape=[1] * 9998 + [4, 16]), WRONG_SHAPE),
    (
        "S08_key_twice_other_shape",
        with_text("{", f'{{"{QA}": {ENTRY.replace("[4, 16]", "[16, 4]")}, '),
        BAD_SAFETENSORS,
    ),
    (
        "S09_key_twice_first_empty",
        with_text("{", f'{{"{QA}": {{"dtype":"F32","shape":[0,0],"data_offsets":[0,0]}}, '),
        BAD_SAFETENSORS,
    ),
    ("S10_field_twice", with_text('"dtype": "F32"', '"dtype": "F16", "dtype": "F32"'), BAD_SAFETENSORS),
    ("S10_metadata_twice", with_text("{", '{"__metadata__": {}, '), BAD_SAFETENSORS),
    (
        "S13_bom",
        raw(b"\xef\xbb\xbf" + json.dumps(parts_of(WEIGHTS)[0]).encode(), parts_of(WEIGHTS)[1]),
        BAD_SAFETENSORS,
    ),
    ("S13_bad_utf8", WEIGHTS.replace(b"q_proj", b"q_pr\xffj", 1), BAD_SAFETENSORS),
    ("S13_lone_surrogate", with_text("q_proj", "q_pr\\ud800j"), BAD_SAFETENSORS),
    ("S13_raw_surrogate", with_text("q_proj", "q_pr\ud800j"), BAD_SAFETENSORS),
    ("S13_array_root", raw(b"[" + json.dumps(parts_of(WEIGHTS)[0]).encode() + b"]"), BAD_SAFETENSORS),
    ("S13_deep_lists", raw(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"), BAD_SAFETENSORS),
    ("S13_deep_objects", raw(b'{"a":' * DEEP + b"1" + b"}" * DEEP), BAD_SAFETENSORS),
    ("S13_float_offsets", setting(QA, data_offsets=[float(x) for x in first_span()]), BAD_SAFETENSORS),
    ("S13_huge_int", with_text("[4, 16]", "[" + "9" * 5000 + ", 16]"), BAD_SAFETENSORS),
    ("S13_nan", with_text("[4, 16]", "[NaN, 16]"), BAD_SAFETENSORS),
    ("S14_metadata_over_cap", changed(lambda h: h.update(__metadata__={"a": "x" * MAX_HEADER_BYTES})), BAD_SAFETENSORS),
    ("S15_nul_in_key", adding("a\0b", dtype="F32", shape=[1, 1], data_offsets=[0, 4]), BAD_SAFETENSORS),
    ("S16_BOOL", of_dtype("BOOL", 1), BAD_DTYPE),
    ("S16_U8", of_dtype("U8", 1), BAD_DTYPE),
    ("S16_I8", of_dtype("I8", 1), BAD_DTYPE),
    ("S16_I16", of_dtype("I16", 2), BAD_DTYPE),
    ("S16_I64", of_dtype("I64", 8), BAD_DTYPE),
    ("S16_U64", of_dtype("U64", 8), BAD_DTYPE),
    ("S16_F8_E4M3", of_dtype("F8_E4M3", 1), BAD_DTYPE),
    ("S16_F8_E5M2", of_dtype("F8_E5M2", 1), BAD_DTYPE),
    ("S16_F4", of_dtype("F4", 0.5), BAD_DTYPE),
    ("S16_F6", of_dtype("F6_E2M3", 0.75), BAD_DTYPE),
    ("S16_C64", of_dtype("C64", 8), BAD_DTYPE),
    ("a_pickle", b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", BAD_SAFETENSORS),
    ("a_torch_zip", b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + WEIGHTS, BAD_SAFETENSORS),
    ("a_polyglot_zip_at_the_end", WEIGHTS + b"PK\x05\x06" + bytes(18), BAD_SAFETENSORS),
]


@pytest.mark.parametrize(("weights", "code"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
@pytest.mark.hostile
def test_refused(tmp_path: Path, weights: bytes, code: Code) -> None:
    must_refuse(tmp_path, VALID, code, weights=weights)


STRANGE_KEYS = {
    "S15_nul": ("q_proj", "q\0proj", BAD_TENSOR_NAME),
    "S15_path": ("model.layers", "../../etc/passwd", BAD_TENSOR_NAME),
    "S15_half_megabyte": ("q_proj", "x" * 500_000, BAD_TENSOR_NAME),
    "S15_nfd": ("q_proj", "q\u0301_proj", BAD_TENSOR_NAME),
    "S15_nfc": ("q_proj", "\u00e9_proj", BAD_TENSOR_NAME),
    "S15_ansi": ("q_proj", "\x1b[31mq_proj", BAD_TENSOR_NAME),
    "S15_html": ("q_proj", "<script>", BAD_TENSOR_NAME),
    "S15_unknown": ("q_proj", "w_proj", UNKNOWN_MODULE),
}


@pytest.mark.parametrize(("old", "new", "code"), STRANGE_KEYS.values(), ids=list(STRANGE_KEYS))
@pytest.mark.hostile
def test_strange_keys(tmp_path: Path, old: str, new: str, code: Code) -> None:
    error = must_refuse(tmp_path, VALID.renaming(QA, QA.replace(old, new)), code)
    assert error.param is not None
    assert error.param.isprintable()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf")], ids=["S17_nan", "S17_inf", "S17_minus_inf"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.hostile("S17")
def test_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    spoiled = VALID.tensors[QB].to(dtype)
    spoiled[3, 2] = value
    assert must_refuse(tmp_path, VALID.adding({QB: spoiled}), NOT_FINITE).param == QB


@pytest.mark.ruling("S04")
def test_s04_order_in_the_header_is_free(tmp_path: Path) -> None:
    header, data = parts_of(WEIGHTS)
    backwards = raw(dict(reversed(header.items())), data)
    assert [m.name for m in push(tmp_path, VALID, weights=backwards).modules] == sorted(VALID.model.modules)


@pytest.mark.parametrize("metadata", [{"a": 1}, [], "text", {"format": "../../x"}], ids=lambda m: f"S14_{m!s:.12}")
@pytest.mark.ruling("S14")
def test_s14_metadata_is_ignored(tmp_path: Path, metadata: Any) -> None:
    push(tmp_path, VALID, weights=changed(lambda h: h.update(__metadata__=metadata)))


@pytest.mark.ruling("S17")
def test_s17_subnormals_and_minus_zero_are_harmless(tmp_path: Path) -> None:
    push(tmp_path, VALID.adding({QA: torch.full((4, 16), 1e-42), QB: torch.full((16, 4), -0.0)}))


@pytest.mark.ruling("S18")
def test_s18_a_byte_swapped_body_is_refused_or_left_to_the_norms(tmp_path: Path) -> None:
    """Structure cannot tell. Swapped, these values are huge but finite in float32, and not finite in float16."""
    swapped_bytes = VALID.tensors[QA].numpy().byteswap().copy()
    upload = VALID.adding({QA: torch.from_numpy(swapped_bytes)})
    if bool(torch.isfinite(upload.tensors[QA]).all()):
        push(tmp_path, upload)
    half = Upload(target(dtype=ServingDtype.FLOAT16), upload.config, upload.tensors)
    must_refuse(tmp_path / "half", half, NOT_FINITE)


@pytest.mark.ruling("S19")
def test_s19_a_body_of_zeros_is_a_no_op(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in VALID.tensors.items()}
    assert not any(m.b.any() for m in push(tmp_path, VALID.adding(zeros)).modules)
