"""The benchmark, a few small modules of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from app.bench.screening import run as screening
from app.bench.screening.report import result_json, tables
from app.bench.screening.run import TINY, Options, Result, run
from app.bench.screening.synthetic import LABEL, random_adapter, write_synthetic
from app.domain.digest import digest_of
from app.domain.lora import Shape
from app.domain.policy import Policy
from app.screen.reference.open import open_reference
from app.screen.screen import screen
from tests.screen.cases import decomposed

KEYS = {"read_gb_per_s", "warm_seconds", "ratio_to_floor", "speedup_vs_released", "peak_extra_mib", "modules"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path, list[tuple[str, float]]]:
    where = tmp_path_factory.mktemp("bench")
    seen: list[tuple[str, float]] = []
    return run(Options(tiny=True, directory=where), lambda what, share: seen.append((what, share))), where, seen


def test_all_keys_with_sane_values(ran: tuple[Result, Path, list[tuple[str, float]]]) -> None:
    found = json.loads(json.dumps(result_json(ran[0])))
    assert set(found) >= KEYS
    assert found["modules"] == len(TINY)
    assert 0.1 < found["read_gb_per_s"] < 10_000
    assert 0.0 < found["warm_seconds"] < 30.0
    assert found["ratio_to_floor"] == pytest.approx(found["warm_seconds"] / found["floor_seconds"])
    assert found["ratio_to_floor"] >= 1.0
    assert found["speedup_vs_released"] > 0.0
    assert 0.0 <= found["peak_extra_mib"] < 256.0
    assert found["synthetic"] is True
    whats = [t["what"] for t in found["timings"]]
    assert any("cold" in what for what in whats)
    assert any("seven" in what for what in whats)
    assert [t["floor_seconds"] for t in found["timings"] if "compact" in t["what"]] == [None]
    balancing = [t for t in found["timings"] if "balancing" in t["what"]]
    assert [t["rank"] for t in balancing] == [8, 16, 64] * 2
    assert all(t["seconds"] > 0 and t["floor_seconds"] is None for t in balancing)


def test_nothing_is_left_behind_and_progress_arrives(ran: tuple[Result, Path, list[tuple[str, float]]]) -> None:
    _, where, seen = ran
    assert list(where.iterdir()) == []
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_tables_can_be_printed(ran: tuple[Result, Path, list[tuple[str, float]]]) -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(tables(ran[0]))
    text = console.export_text()
    assert "ratio" in text
    assert "released SPLoRA" in text


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "ROOM", 1e15)
    with pytest.raises(OSError, match="free"):
        run(Options(tiny=True, directory=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_full_size_is_the_one_promised() -> None:
    shapes, all_shapes = Options().shapes()
    assert len(shapes) == 64
    assert set(shapes.values()) == {Shape(4096, 4096)}
    assert len(all_shapes) == 14
    assert Options.quick().shapes()[0].keys() < shapes.keys()


def test_a_synthetic_reference_is_a_whole_one_and_says_what_it_is(tmp_path: Path) -> None:
    shapes = {"a.q_proj": Shape(600, 300), "a.o_proj": Shape(300, 600)}
    write_synthetic(tmp_path / "r", shapes)
    reference = open_reference(tmp_path / "r", None)
    compact = open_reference(tmp_path / "r-compact", None)
    assert compact.compact
    assert reference.manifest.base == digest_of(LABEL)
    for name in shapes:
        info, v = reference.info(name), reference.v(name)
        assert v is not None
        assert compact.v(name) is None
        true = decomposed(v, info.top_k)
        assert info.v_norm == pytest.approx(float(v.double().norm()), rel=1e-5)
        assert info.s1 == pytest.approx(true.s1, rel=0.05)
        assert info.c_norm == pytest.approx(true.c_norm, rel=0.1)
        assert sum(info.counts) == pytest.approx(info.d_out, rel=1e-6)
    adapter = random_adapter(shapes, 4, 0)
    verdict = screen(adapter, reference, Policy(top_k=4))
    assert all(score is not None for m in verdict.modules for score in m.scores.values())
    again = replace(verdict, id=screen(adapter, compact, Policy(top_k=4)).id)
    assert again.outcome == verdict.outcome
    assert torch.get_num_threads() >= 1
    reference.close()
    compact.close()
