"""Whatever bytes come, the answer is an Adapter of the model's shapes or a row of the table, and nothing else."""

import json
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import CODES, GatewayError, Stage
from app.domain.experts import lacking
from app.domain.lora import Shape, TargetModel
from tests.support.adapters import Upload, check, key, parts_of, raw, target

MODEL = target()
VALID = Upload.valid(MODEL)
CONFIG, WEIGHTS = VALID.config_bytes, VALID.weights_bytes
EXAMPLES = settings(max_examples=400)

LAYER = "model.layers.0.mlp.experts"
INTO, OUT = Shape(8, 16), Shape(16, 8)
MIXTURE = replace(
    MODEL,
    modules={
        f"{LAYER}.{expert}.{kind}": OUT if kind == "down_proj" else INTO
        for expert in range(3)
        for kind in ("gate_proj", "up_proj", "down_proj")
    },
)
STACKED = VALID.having(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]).dropping(*VALID.tensors)
STACKED = STACKED.adding(
    {
        key(f"{LAYER}{inner}", side): torch.ones(shape)
        for inner, shapes in ((".base_layer", ((12, 16), (16, 12))), ("", ((12, 8), (16, 12))))
        for side, shape in zip("AB", shapes, strict=True)
    }
)
PAIRS = sorted(STACKED.tensors)


def judge(config: bytes, weights: bytes, model: TargetModel = MODEL) -> None:
    """Validate, and hold whatever comes out against the contract."""
    try:
        adapter = check(config, weights, model)
    except GatewayError as error:
        assert error.code.stage is Stage.VALIDATE
        assert CODES[error.code.name] is error.code
        assert 400 <= error.code.status < 500
        return
    assert adapter.modules
    assert not lacking((m.name for m in adapter.modules), model.modules)
    assert [m.name for m in adapter.modules] == sorted({m.name for m in adapter.modules})
    for module in adapter.modules:
        shape = model.modules[module.name]
        assert module.a.shape == (module.rank, shape.d_in)
        assert module.b.shape == (shape.d_out, module.rank)
        assert 1 <= module.rank <= model.max_rank
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


def test_the_stacked_adapter_is_sound() -> None:
    assert len(check(STACKED.config_bytes, STACKED.weights_bytes, MIXTURE).modules) == 9


@EXAMPLES
@given(edits, edits)
def test_any_bytes_of_stacked_experts_changed_anywhere(
    config: list[tuple[int, str, bytes]], weights: list[tuple[int, str, bytes]]
) -> None:
    judge(edited(STACKED.config_bytes, config), edited(STACKED.weights_bytes, weights), MIXTURE)


@EXAMPLES
@given(st.sampled_from(PAIRS), st.integers(1, 40), st.integers(1, 40))
def test_stacked_experts_of_any_shape(name: str, rows: int, columns: int) -> None:
    judge(STACKED.config_bytes, STACKED.adding({name: torch.ones(rows, columns)}).weights_bytes, MIXTURE)


@EXAMPLES
@given(
    st.sampled_from(PAIRS),
    st.lists(
        st.sampled_from([".base_layer", ".experts", ".0", ".3", ".gate_proj", ".down_proj", ".mlp", ""]), max_size=3
    ),
)
def test_stacked_experts_under_any_name(name: str, parts: list[str]) -> None:
    """More tensors under names that nearly are, or that an expert has already."""
    module, side = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
    other = module.removesuffix(".base_layer") + "".join(parts)
    values = STACKED.tensors[name].clone()
    judge(STACKED.config_bytes, STACKED.adding({key(other, side): values}).weights_bytes, MIXTURE)
    judge(STACKED.config_bytes, STACKED.renaming(name, key(other, side)).weights_bytes, MIXTURE)
