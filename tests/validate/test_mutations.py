"""Whatever bytes come, the answer is an Adapter of the model's shapes or a row of the table, and nothing else."""

import json
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import CODES, GatewayError, Stage
from tests.support.adapters import Upload, check, parts_of, raw, target

MODEL = target()
VALID = Upload.valid(MODEL)
CONFIG, WEIGHTS = VALID.config_bytes, VALID.weights_bytes
EXAMPLES = settings(max_examples=400)


def judge(config: bytes, weights: bytes) -> None:
    """Validate, and hold whatever comes out against the contract."""
    try:
        adapter = check(config, weights, MODEL)
    except GatewayError as error:
        assert error.code.stage is Stage.VALIDATE
        assert CODES[error.code.name] is error.code
        assert 400 <= error.code.status < 500
        return
    assert adapter.modules
    assert [m.name for m in adapter.modules] == sorted({m.name for m in adapter.modules})
    for module in adapter.modules:
        shape = MODEL.modules[module.name]
        assert module.a.shape == (module.rank, shape.d_in)
        assert module.b.shape == (shape.d_out, module.rank)
        assert 1 <= module.rank <= MODEL.max_rank
        assert module.a.dtype == module.b.dtype == torch.float32
        assert bool(torch.isfinite(module.a).all() & torch.isfinite(module.b).all())
        assert 0 < module.scaling <= 64


edits = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.sampled_from("sid"), st.binary(min_size=1, max_size=6)), max_size=4
)


def edited(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    """Set, insert or delete bytes."""
    found = bytearray(data)
    for where, how, what in changes:
        at = where % (len(found) + 1)
        if how == "i":
            found[at:at] = what
        else:
            found[at : at + len(what)] = what if how == "s" else b""
    return bytes(found)


@EXAMPLES
@given(edits, edits)
def test_any_bytes_changed_anywhere(
    config: list[tuple[int, str, bytes]], weights: list[tuple[int, str, bytes]]
) -> None:
    judge(edited(CONFIG, config), edited(WEIGHTS, weights))


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from("sid"), st.binary(min_size=1, max_size=4)), min_size=1))
def test_bytes_changed_in_the_header(changes: list[tuple[int, str, bytes]]) -> None:
    judge(CONFIG, edited(WEIGHTS[:1500], changes) + WEIGHTS[1500:])


@given(st.binary(max_size=400))
def test_noise(data: bytes) -> None:
    judge(data, WEIGHTS)
    judge(CONFIG, data)
    judge(CONFIG, raw(data))


@EXAMPLES
@given(st.data())
def test_headers_that_lie(data: st.DataObject) -> None:
    """Well-formed JSON with one field of one tensor replaced."""
    header, body = parts_of(WEIGHTS)
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    number = st.integers(-5, 5) | st.integers(0, 1 << 70) | st.sampled_from([4, 8, 16, 24, 64, 256])
    values: dict[str, st.SearchStrategy[Any]] = {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F64", "", None, 1]),
        "shape": st.lists(number, max_size=4),
        "data_offsets": st.lists(number, max_size=3),
    }
    field = data.draw(st.sampled_from(sorted(values)))
    header[name][field] = data.draw(values[field])
    judge(CONFIG, raw(header, body))


@given(
    st.sampled_from(sorted(VALID.config)), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
)
def test_configurations_that_lie(field: str, value: Any) -> None:
    judge(json.dumps({**VALID.config, field: value}).encode(), WEIGHTS)
