"""From two files to an Adapter: pairs, shapes, ranks, scaling, cast."""

import io
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch

from app.domain.errors import (
    BAD_SAFETENSORS,
    BAD_SCALING,
    EMPTY_ADAPTER,
    NOT_FINITE,
    RANK_TOO_HIGH,
    UNKNOWN_MODULE,
    UNPAIRED_TENSOR,
    WRONG_BASE,
    WRONG_SHAPE,
    Code,
    Refused,
)
from app.domain.lora import ServingDtype, Shape, TargetModel
from app.domain.out_of_memory import out_of_memory
from app.validate.adapter import ValidateLimits, validate
from tests.support.adapters import LIMITS, Upload, key, target

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
DTYPES = {
    ServingDtype.FLOAT32: torch.float32,
    ServingDtype.FLOAT16: torch.float16,
    ServingDtype.BFLOAT16: torch.bfloat16,
}


def refusal(upload: Upload, limits: ValidateLimits = LIMITS) -> Refused:
    with pytest.raises(Refused) as caught:
        upload.validate(limits)
    return caught.value


def code_of(upload: Upload, limits: ValidateLimits = LIMITS) -> Code:
    return refusal(upload, limits).code


@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("stored", DTYPES.values(), ids=str)
def test_scaled_cast_and_sorted(served: ServingDtype, stored: torch.dtype) -> None:
    upload = Upload.valid(target(dtype=served), rank=4, alpha=6)
    upload = replace(upload, tensors={k: t.to(stored) for k, t in upload.tensors.items()})
    adapter = upload.validate()
    assert adapter.dtype is served
    assert adapter.rank == 4
    assert [m.name for m in adapter.modules] == sorted(upload.model.modules)
    for module in adapter.modules:
        a, b = upload.tensors[key(module.name, "A")], upload.tensors[key(module.name, "B")]
        assert module.scaling == 1.5
        assert torch.equal(module.a, a.to(DTYPES[served]))
        assert torch.equal(module.b, (b.float() * 1.5).to(DTYPES[served]))
        assert module.a.is_contiguous()
        assert module.b.is_contiguous()


def test_the_same_bytes_give_the_same_adapter() -> None:
    first, second = Upload.valid().validate(), Upload.valid().validate()
    for one, other in zip(first.modules, second.modules, strict=True):
        assert torch.equal(one.a, other.a)
        assert torch.equal(one.b, other.b)


def test_what_was_read_does_not_hang_on_the_file() -> None:
    upload = Upload.valid()
    file = io.BytesIO(upload.weights_bytes)
    adapter = validate(upload.config_bytes, file, upload.model, LIMITS)
    before = adapter.modules[0].a.clone()
    file.getbuffer()[-200:] = bytes(200)
    file.close()
    assert torch.equal(adapter.modules[0].a, before)


def test_some_modules_are_enough() -> None:
    upload = Upload.valid()
    keep = {key(Q, "A"), key(Q, "B")}
    upload = upload.dropping(*(set(upload.tensors) - keep))
    assert [m.name for m in upload.validate().modules] == [Q]


def test_scaling_per_module() -> None:
    upload = Upload.valid(rank=4, alpha=8).having(use_rslora=True, alpha_pattern={Q: 2}, rank_pattern={V: 1})
    v = upload.model.modules[V]
    upload = upload.adding({key(V, "A"): torch.ones(1, v.d_in), key(V, "B"): torch.ones(v.d_out, 1)})
    scalings = {m.name: m.scaling for m in upload.validate().modules}
    assert scalings.pop(Q) == 1.0
    assert scalings.pop(V) == 8.0
    assert set(scalings.values()) == {4.0}


@pytest.mark.parametrize("side", ["A", "B"])
def test_factors_are_told_apart_by_name_never_by_shape(side: str) -> None:
    """A square module with r = d: A and B have the same shape, and transposing neither is right."""
    model = TargetModel("m", {"q": Shape(4, 4)}, ServingDtype.FLOAT32, 4)
    upload = Upload.valid(model, rank=4, alpha=4)
    (module,) = upload.validate().modules
    assert torch.equal(getattr(module, side.lower()), upload.tensors[key("q", side)])


def test_an_all_zero_module_is_fine() -> None:
    upload = Upload.valid().adding({key(Q, "B"): torch.zeros(16, 4)})
    assert Q in [m.name for m in upload.validate().modules]


def test_subnormals_and_negative_zero_are_harmless() -> None:
    upload = Upload.valid().adding({key(Q, "A"): torch.full((4, 16), -0.0), key(Q, "B"): torch.full((16, 4), 1e-42)})
    upload.validate()


def test_what_underflows_in_the_serving_dtype_is_zero_there() -> None:
    upload = Upload.valid(target(dtype=ServingDtype.FLOAT16)).adding({key(Q, "B"): torch.full((16, 4), 1e-9)})
    module = next(m for m in upload.validate().modules if m.name == Q)
    assert not module.b.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.hostile("S17")
def test_what_is_not_finite_names_its_tensor(side: str, value: float) -> None:
    upload = Upload.valid()
    spoiled = upload.tensors[key(Q, side)].clone()
    spoiled[-1, -1] = value
    error = refusal(upload.adding({key(Q, side): spoiled}))
    assert error.code is NOT_FINITE
    assert error.param == key(Q, side)


def test_finite_only_until_it_is_cast_or_scaled() -> None:
    half = target(dtype=ServingDtype.FLOAT16)
    big = {key(Q, "B"): torch.full((16, 4), 40_000.0)}
    Upload.valid(half, rank=4, alpha=4).adding(big).validate()
    assert code_of(Upload.valid(half, rank=4, alpha=8).adding(big)) is NOT_FINITE
    assert code_of(Upload.valid(half).adding({key(Q, "A"): torch.full((4, 16), 1e6)})) is NOT_FINITE
    Upload.valid(target(dtype=ServingDtype.BFLOAT16)).adding({key(Q, "A"): torch.full((4, 16), 1e6)}).validate()
    top = {key(Q, "B"): torch.full((16, 4), torch.finfo(torch.float32).max)}
    assert code_of(Upload.valid(rank=4, alpha=8).adding(top)) is NOT_FINITE


@pytest.mark.parametrize("side", ["A", "B"])
def test_half_a_pair(side: str) -> None:
    error = refusal(Upload.valid().dropping(key(Q, side)))
    assert error.code is UNPAIRED_TENSOR
    assert f"{Q} has no lora_{side}" in error.message


def test_no_tensors() -> None:
    upload = Upload.valid()
    assert code_of(upload.dropping(*upload.tensors)) is EMPTY_ADAPTER


@pytest.mark.parametrize(
    ("side", "shape"),
    [
        ("A", (4, 15)),
        ("A", (4, 17)),
        ("A", (4, 1)),
        ("A", (16, 4)),
        ("A", (5, 16)),
        ("A", (3, 16)),
        ("B", (15, 4)),
        ("B", (1, 4)),
        ("B", (4, 16)),
        ("B", (16, 5)),
    ],
)
@pytest.mark.hostile("K18")
def test_shapes_are_the_models_own(side: str, shape: tuple[int, int]) -> None:
    error = refusal(Upload.valid().adding({key(Q, side): torch.zeros(shape)}))
    assert error.code is WRONG_SHAPE
    assert error.param is not None
    assert Q in error.param


@pytest.mark.parametrize("said", [1, 3, 5, 8])
def test_the_rank_is_the_one_announced(said: int) -> None:
    """Otherwise alpha / r would be anybody's guess."""
    assert code_of(Upload.valid(rank=4).having(r=said)) is WRONG_SHAPE
    assert code_of(Upload.valid(rank=4).having(rank_pattern={Q: said})) is WRONG_SHAPE


def test_the_highest_rank_passes_and_one_more_does_not() -> None:
    model = target(max_rank=8)
    Upload.valid(model, rank=8).validate()
    assert code_of(Upload.valid(model, rank=9)) is RANK_TOO_HIGH
    assert code_of(Upload.valid(model, rank=512, alpha=512)) is RANK_TOO_HIGH


@pytest.mark.parametrize("alpha", [256.0, 1e-30, 0.5])
def test_scalings_within_the_limit(alpha: float) -> None:
    Upload.valid(rank=4, alpha=alpha).validate()


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 257},
        {"lora_alpha": 1e8},
        {"lora_alpha": 129, "use_rslora": True},
        {"alpha_pattern": {Q: 8000}},
    ],
)
@pytest.mark.hostile("C04")
def test_scalings_beyond_it(fields: dict[str, Any]) -> None:
    assert code_of(Upload.valid(rank=4).having(**fields)) is BAD_SCALING


def test_a_pattern_for_a_module_nobody_has_changes_nothing() -> None:
    nobody = {"model.layers.9.self_attn.q_proj": 1, "w_proj": 3}
    for field in ("rank_pattern", "alpha_pattern"):
        scalings = {m.scaling for m in Upload.valid().having(**{field: nobody}).validate().modules}
        assert scalings == {2.0}


def test_float64_is_scaled_before_it_is_cast() -> None:
    upload = Upload.valid(rank=4, alpha=8)
    upload = replace(upload, tensors={k: t.double() / 3.0 for k, t in upload.tensors.items()})
    for module in upload.validate().modules:
        assert torch.equal(module.b, (upload.tensors[key(module.name, "B")] * 2.0).float())


def test_every_fault_of_config_and_tensors_is_in_one_answer() -> None:
    extra = {key("lm_head", "A"): torch.zeros(4, 16), key("lm_head", "B"): torch.zeros(16, 4)}
    short = {key(Q, "A"): torch.zeros(4, 15)}
    error = refusal(Upload.valid().having(use_dora=True).adding(extra | short).dropping(key(V, "B")))
    assert [fault.code for fault in error.details] == ["unsupported_config", "unknown_module", "wrong_shape"]
    assert error.code.name == "unsupported_config"
    assert "down_proj, q_proj, v_proj" in error.details[1].message


def test_a_fault_that_all_layers_have_is_told_once_and_counted() -> None:
    model = target(layers=40)
    upload = Upload.valid(model)
    wrong = {key(m, "A"): torch.zeros(4, 15) for m in model.modules if m.endswith("q_proj")}
    (fault,) = refusal(upload.adding(wrong)).details
    assert "39 more like it" in fault.message


def test_a_pattern_for_a_module_that_was_not_adapted_changes_nothing() -> None:
    upload = Upload.valid().dropping(key(Q, "A"), key(Q, "B")).having(alpha_pattern={Q: 1})
    assert Q not in [m.name for m in upload.validate().modules]


@pytest.mark.hostile("K09")
def test_modules_the_model_lacks() -> None:
    extra = {key("lm_head", "A"): torch.zeros(4, 16), key("lm_head", "B"): torch.zeros(16, 4)}
    error = refusal(Upload.valid().adding(extra))
    assert error.code is UNKNOWN_MODULE
    assert "lm_head" in error.message


def test_the_base_name_is_compared_when_asked() -> None:
    names = ValidateLimits(base_names=frozenset({"org/other"}))
    assert code_of(Upload.valid(), names) is WRONG_BASE
    Upload.valid().having(base_model_name_or_path="org/other").validate(names)


@pytest.mark.parametrize("most", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_that_limit_nothing(most: float) -> None:
    with pytest.raises(ValueError, match="max_scaling"):
        ValidateLimits(max_scaling=most)


def test_a_surprise_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object) -> None:
        raise RuntimeError("of some library")

    monkeypatch.setattr(torch, "isfinite", surprise)
    error = refusal(Upload.valid())
    assert error.code is BAD_SAFETENSORS
    assert "RuntimeError" in error.message


@pytest.mark.parametrize("error", [OSError(5, "disk"), MemoryError()], ids=repr)
def test_our_own_trouble_is_not_blamed_on_the_upload(error: Exception) -> None:
    upload = Upload.valid()

    class Failing(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            raise error

    with pytest.raises(type(error)):
        validate(upload.config_bytes, Failing(upload.weights_bytes), upload.model, LIMITS)


def test_torch_out_of_memory_is_not_blamed_on_the_upload_either(monkeypatch: pytest.MonkeyPatch) -> None:
    cast = torch.Tensor.to

    def greedy(tensor: torch.Tensor, *given: Any) -> torch.Tensor:
        torch.empty(1 << 60, dtype=torch.uint8)  # torch's own words, whatever they are in this release
        return cast(tensor, *given)

    upload = Upload.valid()
    monkeypatch.setattr(torch.Tensor, "to", greedy)
    with pytest.raises(RuntimeError) as caught:
        validate(upload.config_bytes, io.BytesIO(upload.weights_bytes), upload.model, LIMITS)
    assert out_of_memory(caught.value)


def test_a_file_that_shrinks_under_us_is_refused() -> None:
    upload = Upload.valid()

    class Short(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            return super().readinto(memoryview(buffer)[:-1])

    with pytest.raises(Refused) as caught:
        validate(upload.config_bytes, Short(upload.weights_bytes), upload.model, LIMITS)
    assert caught.value.code is BAD_SAFETENSORS


def test_nothing_is_read_before_everything_is_checked() -> None:
    upload = Upload.valid().dropping(key(V, "B"))

    class Watched(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            raise AssertionError("a tensor was read")

    with pytest.raises(Refused):
        validate(upload.config_bytes, Watched(upload.weights_bytes), upload.model, LIMITS)


def test_python_memory_is_one_tensor_at_a_time() -> None:
    """64 MiB of float32 served in float16: what Python itself holds never exceeds one tensor and the header."""
    side = 1024
    model = TargetModel("m", {f"m.{i}.q": Shape(side, side) for i in range(8)}, ServingDtype.FLOAT16, side)
    file = io.BytesIO(Upload.valid(model, rank=side, alpha=side).weights_bytes)
    config = Upload.valid(target()).having(r=side, lora_alpha=side).config_bytes
    tracemalloc.start()
    try:
        validate(config, file, model, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * side * side * 4 + (1 << 20)
