import pytest

from app.upload.limits import GIB, UploadLimits


def test_the_body_cap_leaves_room_for_full_parts_and_little_else() -> None:
    limits = UploadLimits()
    assert limits.max_weights_bytes == 2 * GIB
    parts = limits.max_weights_bytes + limits.max_config_bytes + limits.max_signature_bytes + limits.max_name_bytes
    assert parts < limits.max_body_bytes < parts + 20_000


@pytest.mark.parametrize("field", ["max_weights_bytes", "max_concurrent", "rate_window_s", "idle_timeout_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_bounds_that_bound_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field if value else "above 0|max_"):
        UploadLimits(**{field: value})  # type: ignore[arg-type]  # a float where bytes are counted, on purpose


def test_a_floor_and_a_rate_of_zero_switch_them_off() -> None:
    assert UploadLimits(free_disk_floor_bytes=0, min_rate_bytes_s=0).max_concurrent == 4
