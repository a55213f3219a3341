"""The header check against the library's own files, and against everything a header can lie about."""

import io
import json
import time
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from app.domain.errors import BAD_DTYPE, BAD_SAFETENSORS, EMPTY_ADAPTER, WRONG_SHAPE, Code, Refused
from app.validate.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, TensorEntry, read_header
from tests.support.adapters import Upload, parts_of, raw


def header_of(file: bytes) -> tuple[TensorEntry, ...]:
    return read_header(io.BytesIO(file))


def code_of(file: bytes) -> Code:
    with pytest.raises(Refused) as caught:
        header_of(file)
    return caught.value.code


def tensor(begin: int = 0, end: int = 24, shape: Any = (2, 3), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read_alike() -> None:
    file = Upload.valid().weights_bytes
    entries = header_of(file)
    written = load(file)
    assert {e.name for e in entries} == set(written)
    for entry in entries:
        stored = torch.frombuffer(bytearray(file[entry.begin : entry.end]), dtype=torch.float32)
        assert torch.equal(stored.reshape(entry.shape), written[entry.name])
    assert [e.begin for e in entries] == sorted(e.begin for e in entries)
    assert entries[-1].end == len(file)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), min_size=6, max_size=6),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_any_file_of_matrices_is_read(
    shapes: list[tuple[int, int]], dtypes: list[torch.dtype], metadata: dict[str, str] | None
) -> None:
    tensors = {f"t{i}": torch.zeros(s, dtype=d) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=False))}
    assert {e.name: e.shape for e in header_of(save(tensors, metadata))} == {
        f"t{i}": shape for i, shape in enumerate(shapes)
    }


def test_order_in_the_header_does_not_matter() -> None:
    assert [e.name for e in header_of(raw({"b": tensor(24, 48), "a": tensor()}, bytes(48)))] == ["a", "b"]


def test_offsets_need_no_alignment() -> None:
    (entry,) = header_of(raw(json.dumps({"a": tensor()}).encode() + b" " * 3, bytes(24)))
    assert entry.end - entry.begin == 24


@pytest.mark.parametrize(
    "metadata", [{"format": "pt"}, {"a": 1}, ["no", "object"], None, "x" * 500_000], ids=lambda m: str(m)[:20]
)
def test_metadata_is_never_looked_at(metadata: Any) -> None:
    assert len(header_of(raw({"__metadata__": metadata, "a": tensor()}, bytes(24)))) == 1


D24 = bytes(24)

WRONG: dict[str, tuple[bytes, Code]] = {
    "empty": (b"", BAD_SAFETENSORS),
    "seven_bytes": (b"\x02\0\0\0\0\0\0", BAD_SAFETENSORS),
    "length_only": (b"\x02\0\0\0\0\0\0\0", BAD_SAFETENSORS),
    "length_2_63": (b"\0\0\0\0\0\0\0\x80{}", BAD_SAFETENSORS),
    "length_all_ones": (b"\xff" * 8 + b"{}", BAD_SAFETENSORS),
    "length_beyond_file": (b"\x10\0\0\0\0\0\0\0{}", BAD_SAFETENSORS),
    "length_zero": (bytes(8), BAD_SAFETENSORS),
    "no_tensors": (raw({}), EMPTY_ADAPTER),
    "no_tensors_but_data": (raw({}, D24), EMPTY_ADAPTER),
    "only_metadata": (raw({"__metadata__": {"format": "pt"}}), EMPTY_ADAPTER),
    "array_root": (raw(b"[]"), BAD_SAFETENSORS),
    "null_root": (raw(b"null"), BAD_SAFETENSORS),
    "leading_space": (raw(b' {"a": 1}'), BAD_SAFETENSORS),
    "entry_no_object": (raw({"a": 1}), BAD_SAFETENSORS),
    "entry_empty": (raw({"a": {}}), BAD_SAFETENSORS),
    "entry_extra": (raw({"a": {**tensor(), "strides": [1, 1]}}, D24), BAD_SAFETENSORS),
    "dtype_number": (raw({"a": tensor(dtype=32)}, D24), BAD_SAFETENSORS),
    "dtype_list": (raw({"a": tensor(dtype=["F32"])}, D24), BAD_SAFETENSORS),
    "dtype_lower_case": (raw({"a": tensor(dtype="f32")}, D24), BAD_DTYPE),
    "shape_string": (raw({"a": tensor(shape="2,3")}, D24), BAD_SAFETENSORS),
    "shape_floats": (raw({"a": tensor(shape=[2.0, 3])}, D24), BAD_SAFETENSORS),
    "shape_bool": (raw({"a": tensor(shape=[True, 6])}, D24), BAD_SAFETENSORS),
    "shape_negative": (raw({"a": tensor(shape=[-2, -3])}, D24), BAD_SAFETENSORS),
    "shape_lies": (raw({"a": tensor(shape=[3, 3])}, D24), BAD_SAFETENSORS),
    "shape_overflows_64_bits": (raw({"a": tensor(shape=[2**33, 2**33])}, D24), BAD_SAFETENSORS),
    "shape_wraps_to_the_size": (raw({"a": tensor(shape=[2**32 + 1, 2**32 * 6])}, D24), BAD_SAFETENSORS),
    "rank_0": (raw({"a": tensor(end=4, shape=[])}, bytes(4)), WRONG_SHAPE),
    "rank_1": (raw({"a": tensor(shape=[6])}, D24), WRONG_SHAPE),
    "rank_3": (raw({"a": tensor(shape=[1, 2, 3])}, D24), WRONG_SHAPE),
    "rank_64": (raw({"a": tensor(end=4, shape=[1] * 64)}, bytes(4)), WRONG_SHAPE),
    "rank_10000": (raw({"a": tensor(end=4, shape=[1] * 10_000)}, bytes(4)), WRONG_SHAPE),
    "no_rows": (raw({"a": tensor(end=0, shape=[0, 3])}), WRONG_SHAPE),
    "zero3_leftover": (raw({"a": tensor(end=0, shape=[0])}), WRONG_SHAPE),
    "offsets_float": (
        raw(b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0.0, 24]}}', D24),
        BAD_SAFETENSORS,
    ),
    "offsets_exponent": (
        raw(b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24e0]}}', D24),
        BAD_SAFETENSORS,
    ),
    "offsets_three": (raw({"a": {**tensor(), "data_offsets": [0, 12, 24]}}, D24), BAD_SAFETENSORS),
    "offsets_one": (raw({"a": {**tensor(), "data_offsets": [24]}}, D24), BAD_SAFETENSORS),
    "offsets_negative": (raw({"a": tensor(-24, 0)}, D24), BAD_SAFETENSORS),
    "offsets_swapped": (raw({"a": tensor(24, 0)}, D24), BAD_SAFETENSORS),
    "offsets_minus_zero": (
        raw(b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [-0, 24]}}', D24),
        BAD_SAFETENSORS,
    ),
    "trailing_bytes": (raw({"a": tensor()}, bytes(25)), BAD_SAFETENSORS),
    "truncated": (raw({"a": tensor()}, bytes(23)), BAD_SAFETENSORS),
    "hole_at_the_start": (raw({"a": tensor(4, 28)}, bytes(28)), BAD_SAFETENSORS),
    "hole_between": (raw({"a": tensor(), "b": tensor(28, 52)}, bytes(52)), BAD_SAFETENSORS),
    "overlap": (raw({"a": tensor(), "b": tensor(20, 44)}, bytes(44)), BAD_SAFETENSORS),
    "same_span_twice": (raw({"a": tensor(), "b": tensor()}, D24), BAD_SAFETENSORS),
    "key_twice": (raw(b'{"a": %s, "a": %s}' % (2 * (json.dumps(tensor()).encode(),)), D24), BAD_SAFETENSORS),
    "field_twice": (
        raw(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2, 3], "data_offsets": [0, 24]}}', D24),
        BAD_SAFETENSORS,
    ),
    "metadata_twice": (
        raw(b'{"__metadata__": {}, "__metadata__": {}, "a": %s}' % json.dumps(tensor()).encode(), D24),
        BAD_SAFETENSORS,
    ),
}


@pytest.mark.parametrize(("file", "code"), WRONG.values(), ids=list(WRONG))
@pytest.mark.hostile
def test_refused(file: bytes, code: Code) -> None:
    assert code_of(file) is code


@pytest.mark.parametrize(
    "dtype",
    [
        "BOOL",
        "U8",
        "I8",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "F4",
        "F6_E2M3",
        "I16",
        "I64",
        "U64",
        "C64",
        "",
        "x" * 999,
    ],
)
@pytest.mark.hostile("S16")
def test_other_dtypes_are_refused_by_name(dtype: str) -> None:
    assert code_of(raw({"a": tensor(dtype=dtype)}, D24)) is BAD_DTYPE


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"PK\x03\x04\x14\0\0\0\x08\0", "zip"),
        (b"\x80\x02}q\0(X\x10\0", "pickle"),
        (b"\x80\x04\x95\x10\x01\0\0\0\0\0\0", "pickle"),
        (b"\x80\x04\x95\0\x10\0\0\0\0\0\0\0", "pickle"),
        (b"\x80\x03.", "pickle"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        (b"\x93NUMPY\x01\0v\0", "NumPy"),
        (b"GGUF\x03\0\0\0\x10\0", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"<!DOCTYPE html>", "HTML"),
    ],
)
@pytest.mark.hostile("S01")
def test_other_formats_are_called_by_their_name(start: bytes, word: str) -> None:
    with pytest.raises(Refused) as caught:
        header_of(start)
    assert caught.value.code is BAD_SAFETENSORS
    assert word in caught.value.message


def test_a_header_whose_length_looks_like_a_pickle_is_still_a_header() -> None:
    """0x0280 = 640 bytes begin with the two bytes of a protocol-2 pickle."""
    text = json.dumps({"a": tensor()}).encode()
    assert len(header_of(raw(text + b" " * (0x0280 - len(text)), D24))) == 1


def test_the_header_cap_holds_before_the_header_is_read() -> None:
    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.most = max(self.most, size or 0)
            return super().read(size)

    text = json.dumps({"a": tensor()}).encode()
    at_cap = raw(text + b" " * (MAX_HEADER_BYTES - len(text)), D24)
    assert len(header_of(at_cap)) == 1
    over = Counting(raw(text + b" " * (MAX_HEADER_BYTES + 1 - len(text)), D24))
    with pytest.raises(Refused):
        read_header(over)
    assert over.most == 8


@given(st.data())
def test_we_never_take_what_the_library_refuses(data: st.DataObject) -> None:
    """One changed byte in the header: whatever passes here, safetensors itself takes too."""
    file = bytearray(raw({"a": tensor(), "b": tensor(24, 48)}, bytes(48)))
    length = len(file) - 48
    file[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    try:
        header_of(bytes(file))
    except Refused:
        return
    try:
        load(bytes(file))
    except SafetensorError as error:
        raise AssertionError(f"taken here, refused by safetensors: {error}") from error


def test_parts_and_raw_are_each_others_inverse() -> None:
    file = Upload.valid().weights_bytes
    header, data = parts_of(file)
    assert header_of(raw(header, data))[-1].end == len(raw(header, data))


def largest() -> bytes:
    """A file of as many tensors as are taken, named as those of a mixture's experts are."""
    header = {}
    for i in range(MAX_TENSORS):
        layer, expert, side = i // 768, i // 6 % 128, "AB"[i % 2]
        name = f"base_model.model.model.language_model.layers.{layer}.mlp.experts.{expert}.l{i % 6}_proj.lora_{side}.weight"
        header[f"{name}"] = {"dtype": "BF16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2]}
    return raw(header, bytes(2 * MAX_TENSORS))


def test_the_largest_mixture_is_read_in_seconds_and_in_bounded_memory() -> None:
    file = largest()
    tracemalloc.start()
    began = time.process_time()
    try:
        entries = header_of(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(entries) == MAX_TENSORS
    assert time.process_time() - began < 20
    assert peak < 200 << 20


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'""', b'{"":[]}'], ids=repr)
@pytest.mark.hostile("S02")
def test_a_header_of_millions_of_values_is_refused_before_it_is_parsed(value: bytes) -> None:
    many = value + b"," + value
    while len(many) < MAX_HEADER_BYTES // 2:
        many = many + b"," + many
    file = raw(b'{"__metadata__":[%s]}' % many)
    tracemalloc.start()
    try:
        assert code_of(file) is BAD_SAFETENSORS
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(file)
