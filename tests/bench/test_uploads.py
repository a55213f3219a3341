"""The upload benchmark on one small module: stages within the whole, and its table and file are written."""

import json

import pytest
from rich.console import Console

from app.bench.screening.uploads import cases, result_json, run, table
from app.domain.lora import Shape


def test_stages_lie_within_the_whole_and_another_program_is_timed() -> None:
    machine, (found,) = run(cases(large=False, tiny=True), beside="sha256sum")
    assert len(found.rounds) == 2
    for one in found.rounds:
        assert min(one.validate, one.screen, one.prune, one.floor) > 0
        assert one.validate + one.screen + one.prune == pytest.approx(one.total, abs=0.05)
        assert one.beside is not None
        assert one.beside > 0
    console = Console(width=168, record=True)
    console.print(table(machine, [found]))
    assert "read + hash" in console.export_text()
    written = json.loads(json.dumps(result_json(machine, [found])))
    assert written["cases"][0]["size"] > 4 * (256 + 128) * 2


def test_the_large_case_has_the_shapes_of_70b() -> None:
    large = cases(large=True)[-1]
    assert len(large.shapes) == 560
    assert set(large.shapes.values()) == {Shape(1024, 8192), Shape(8192, 8192), Shape(28672, 8192), Shape(8192, 28672)}
    values = sum(shape.d_out + shape.d_in for shape in large.shapes.values()) * large.rank
    assert values * 2 == pytest.approx(1.66e9, rel=0.01)
