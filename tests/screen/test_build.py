import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.errors import BAD_REFERENCE, Unavailable
from app.domain.policy import Policy
from app.domain.rungs import DEFAULT_RUNGS, policies, rungs_from
from app.screen.reference import build
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.manifest import MANIFEST
from app.screen.reference.open import check_policy, open_reference
from tests.support.references import aligned_from, make_pair, module_names, weights, write_checkpoint

Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def test_v_and_its_statistics_are_of_what_is_stored(pair: tuple[Path, Path], tmp_path: Path) -> None:
    digest = build_reference(*pair, tmp_path / "r", BuildOptions(top_k=5))
    opened = open_reference(tmp_path / "r", digest)
    base, aligned = weights(0), aligned_from(weights(0))
    assert sorted(opened.modules) == module_names()
    for name, shape in opened.modules.items():
        exact = aligned[f"{name}.weight"].double() - base[f"{name}.weight"].double()
        v, info, triples = opened.v(name), opened.info(name), opened.triples(name)
        assert v is not None
        assert triples is not None
        assert v.dtype == torch.bfloat16
        assert tuple(v.shape) == (shape.d_out, shape.d_in)
        assert torch.equal(v, exact.float().bfloat16())
        stored = v.double()
        assert info.rounding == pytest.approx(float((stored - exact).norm() / exact.norm()), rel=1e-6)
        assert 0 < info.rounding < 2**-8
        s = torch.linalg.svdvals(stored)
        assert info.v_norm == pytest.approx(float(stored.norm()), rel=1e-12)
        assert info.s1 == pytest.approx(float(s[0]), rel=1e-12)
        assert info.lambda_max == pytest.approx(float(s[0] ** 2 / stored.norm()), rel=1e-12)
        torch.testing.assert_close(triples.s.double(), s[:5], rtol=1e-6, atol=0)
    opened.close()


def test_the_digest_is_that_of_the_manifest_and_the_same_every_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = (build_reference(*pair, tmp_path / name, BuildOptions(top_k=4)) for name in ("one", "two"))
    assert one == two
    assert one.hex == hashlib.sha256((tmp_path / "one" / MANIFEST).read_bytes()).hexdigest()
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_sharding_changes_nothing_and_dtypes_may_differ(pair: tuple[Path, Path], tmp_path: Path) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", aligned_from(weights(0)), files=3)
    single = build_reference(*pair, tmp_path / "single", BuildOptions(top_k=4))
    assert build_reference(pair[0], sharded, tmp_path / "many", BuildOptions(top_k=4)) == single
    half = write_checkpoint(tmp_path / "half", aligned_from(weights(0)), dtype=torch.bfloat16, files=2)
    assert build_reference(pair[0], half, tmp_path / "mixed", BuildOptions(top_k=4)) != single
    opened = open_reference(tmp_path / "mixed", None)
    exact = aligned_from(weights(0))[f"{Q}.weight"].bfloat16().float() - weights(0)[f"{Q}.weight"]
    v = opened.v(Q)
    assert v is not None
    assert torch.equal(v, exact.bfloat16())
    opened.close()


def test_a_checkpoints_digest_covers_every_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = aligned_from(weights(0))
    other["model.embed_tokens.weight"] = other["model.embed_tokens.weight"] + 1.0
    build_reference(*pair, tmp_path / "one", BuildOptions(top_k=4))
    build_reference(pair[0], write_checkpoint(tmp_path / "c", other), tmp_path / "two", BuildOptions(top_k=4))
    one, two = (json.loads((tmp_path / name / MANIFEST).read_text()) for name in ("one", "two"))
    assert one["base"] == two["base"]
    assert one["aligned"] != two["aligned"]
    assert one["modules"] == two["modules"]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-7), (torch.float16, 2**-10), (torch.bfloat16, 2**-8)])
def test_the_storage_dtype_is_the_operators(
    pair: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype, bound: float
) -> None:
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4, dtype=dtype))
    opened = open_reference(tmp_path / "r", None)
    v = opened.v(Q)
    assert v is not None
    assert v.dtype == dtype
    assert opened.info(Q).rounding < bound
    assert opened.manifest.dtype == str(dtype).removeprefix("torch.")
    opened.close()


def test_compact_leaves_v_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4, compact=True))
    assert not list((tmp_path / "r").glob("*.v.safetensors"))
    opened = open_reference(tmp_path / "r", None)
    assert opened.compact
    assert opened.v(Q) is None
    assert opened.triples(Q) is not None
    opened.close()


def test_a_glob_picks_modules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4, modules="*.q_proj"))
    opened = open_reference(tmp_path / "r", None)
    assert sorted(opened.modules) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    opened.close()


def test_progress_names_each_module(pair: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4), lambda *told: seen.append(told))
    assert [name for name, _, _ in seen] == [*module_names(), "done"]
    assert [done for _, done, _ in seen] == list(range(9))


def test_a_module_alignment_left_alone_is_recorded_as_such(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = weights(0)
    aligned = aligned_from(base) | {f"{Q}.weight": base[f"{Q}.weight"]}
    build_reference(pair[0], write_checkpoint(tmp_path / "c", aligned), tmp_path / "r", BuildOptions(top_k=4))
    opened = open_reference(tmp_path / "r", None)
    assert opened.info(Q).v_norm == 0.0
    assert opened.v(Q) is None
    assert opened.triples(Q) is None
    assert Q in opened.modules
    opened.close()


# ---- refusals ----------------------------------------------------------------------------------------------------


def refused(base: Path, aligned: Path, out: Path, *words: str, options: BuildOptions | None = None) -> None:
    with pytest.raises(Unavailable) as caught:
        build_reference(base, aligned, out, options)
    assert caught.value.code is BAD_REFERENCE
    for word in words:
        assert word in caught.value.message
    assert not (out / MANIFEST).exists()


def test_another_shape_is_refused_naming_the_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = weights(0) | {f"{Q}.weight": torch.zeros(64, 63)}
    refused(pair[0], write_checkpoint(tmp_path / "c", other), tmp_path / "r", f"{Q}.weight", "64 × 64", "64 × 63")


@pytest.mark.parametrize("missing_from", ["base", "aligned"])
def test_another_architecture_is_refused_naming_the_tensor(
    pair: tuple[Path, Path], tmp_path: Path, missing_from: str
) -> None:
    fewer = {name: w for name, w in weights(0).items() if name != f"{Q}.weight"}
    odd = write_checkpoint(tmp_path / "c", fewer)
    refused(*((odd, pair[1]) if missing_from == "base" else (pair[0], odd)), tmp_path / "r", f"{Q}.weight")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_naming_the_tensor(
    pair: tuple[Path, Path], tmp_path: Path, bad: float
) -> None:
    other = aligned_from(weights(0))
    other[f"{Q}.weight"][3, 3] = bad
    refused(pair[0], write_checkpoint(tmp_path / "c", other), tmp_path / "r", f"{Q}.weight", "finite", "/c")


def test_every_refusal_names_file_and_tensor_and_leaves_nothing_to_open(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    short, nan, odd = (aligned_from(weights(0)) for _ in range(3))
    short[f"{Q}.weight"] = short[f"{Q}.weight"][:-1].contiguous()
    nan[f"{Q}.weight"][-1, -1] = float("nan")
    odd["model.layers.1.self_attn.odd_proj.weight"] = torch.zeros(4, 4)
    for name, tensors, tensor in (
        ("short", short, f"{Q}.weight"),
        ("nan", nan, f"{Q}.weight"),
        ("odd", odd, "model.layers.1.self_attn.odd_proj.weight"),
    ):
        other = write_checkpoint(tmp_path / name, tensors, files=3)
        held = next(file for tensor_, file in weight_map(other).items() if tensor_ == tensor)
        refused(pair[0], other, tmp_path / "r", f"{other / held}: tensor {tensor}")
        with pytest.raises(Unavailable, match="not a finished reference"):
            open_reference(tmp_path / "r", None)


def weight_map(checkpoint: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    return found


def test_the_manifest_says_what_was_rounded_and_what_was_left_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4, modules="*.q_proj"))
    told = json.loads((tmp_path / "r" / MANIFEST).read_text())
    assert told["dtype"] == "bfloat16"
    assert all(0 < m["rounding"] < 2**-8 and m["triples_error"] < 1e-6 for m in told["modules"])
    taken = {f"{m['name']}.weight" for m in told["modules"]}
    matrices = {name for name, w in weights(0).items() if w.ndim > 1}
    assert set(told["left_out"]) == matrices - taken
    opened = open_reference(tmp_path / "r", None)
    assert set(opened.manifest.left_out) == set(told["left_out"])
    opened.close()


def test_blocks_of_rows_change_no_value(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_reference(*pair, tmp_path / "whole", BuildOptions(top_k=4))
    monkeypatch.setattr(build, "BLOCK_BYTES", 8 * 64 * 5)  # five rows at a time, and a ragged end
    build_reference(*pair, tmp_path / "parts", BuildOptions(top_k=4))
    one, two = (open_reference(tmp_path / name, None) for name in ("whole", "parts"))
    for name in one.modules:
        v, w = one.v(name), two.v(name)
        assert v is not None
        assert w is not None
        assert torch.equal(v, w)
        assert one.info(name).v_norm == pytest.approx(two.info(name).v_norm, rel=1e-14)
        assert one.info(name).rounding == pytest.approx(two.info(name).rounding, rel=1e-10)
    assert (one.manifest.base, one.manifest.aligned) == (two.manifest.base, two.manifest.aligned)
    one.close()
    two.close()


def test_a_difference_that_does_not_fit_the_storage_dtype_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = aligned_from(weights(0))
    other[f"{Q}.weight"][3, 3] = 1e6
    odd = write_checkpoint(tmp_path / "c", other)
    refused(pair[0], odd, tmp_path / "r", f"{Q}.weight", "fit", options=BuildOptions(dtype=torch.float16))


def test_a_glob_that_matches_nothing_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    refused(*pair, tmp_path / "r", "*.nothing", options=BuildOptions(modules="*.nothing"))


def test_nothing_is_overwritten(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    refused(*pair, tmp_path / "r", "already exists")


def test_each_module_keeps_what_its_energy_needs_and_the_widest_rung_unless_told_otherwise(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    build_reference(*pair, tmp_path / "r", BuildOptions(energy=0.95, outputs=2))
    opened = open_reference(tmp_path / "r", None)
    kept = set()
    for name in opened.modules:
        v, triples = opened.v(name), opened.triples(name)
        assert v is not None
        assert triples is not None
        held = torch.linalg.svdvals(v.double()).square().cumsum(0)
        needed = max(int((held < 0.95 * held[-1]).sum()) + 1, 2)
        assert (triples.r.shape[1], triples.u.shape[1]) == (needed, 2)
        kept.add(needed)
    assert len(kept) > 1, "modules differ"
    opened.close()
    build_reference(*pair, tmp_path / "default", BuildOptions(compact=True))
    opened = open_reference(tmp_path / "default", None)
    for policy in policies(Policy(), rungs_from(DEFAULT_RUNGS)):
        check_policy(opened, policy)
    opened.close()


@pytest.mark.parametrize(
    "options", [{"top_k": 0}, {"energy": 0.0}, {"energy": 1.1}, {"outputs": -1}, {"dtype": torch.int8}]
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|stored as"):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_a_full_disk_is_the_operators_to_mend(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(build, "save_file", full)
        refused(*pair, tmp_path / "r", "No space left")
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4))


# ---- killed half-way ---------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from app.screen.reference.build import BuildOptions, build_reference
def progress(name, done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
build_reference(sys.argv[1], sys.argv[2], Path(sys.argv[3]), BuildOptions(top_k=4), progress)
"""


def test_killed_half_way_leaves_nothing_to_open_and_goes_on(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    command = [sys.executable, "-c", KILLED, *map(str, (*pair, out))]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], timeout=120).returncode == -signal.SIGKILL
    assert not out.exists()
    (stage,) = tmp_path.iterdir()
    with pytest.raises(Unavailable, match="not a finished reference"):
        open_reference(stage, None)

    measured: list[str] = []
    original = build._measure

    def noting(*args: Any) -> Any:
        measured.append(args[2])
        return original(*args)

    monkeypatch.setattr(build, "_measure", noting)
    resumed = build_reference(*pair, out, BuildOptions(top_k=4))
    assert measured == module_names()[3:]
    assert resumed == build_reference(*pair, tmp_path / "fresh", BuildOptions(top_k=4))
    assert sorted(f.name for f in out.iterdir()) == sorted(f.name for f in (tmp_path / "fresh").iterdir())


def test_a_half_finished_build_of_something_else_is_not_continued(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for options in (BuildOptions(top_k=4), BuildOptions(top_k=5)):
        with pytest.raises(KeyboardInterrupt):
            build_reference(*pair, tmp_path / "r", options, stop)
    assert build_reference(*pair, tmp_path / "r", BuildOptions(top_k=6)) == build_reference(
        *pair, tmp_path / "fresh", BuildOptions(top_k=6)
    )


def test_a_damaged_half_finished_module_is_measured_anew(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4), stop)
    victim = next((tmp_path / ".r.building").glob("*.v.safetensors"))
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    build_reference(*pair, tmp_path / "r", BuildOptions(top_k=4))
    open_reference(tmp_path / "r", None).close()


def test_two_builds_of_one_reference_do_not_meet(pair: tuple[Path, Path], tmp_path: Path) -> None:
    import fcntl

    stage = tmp_path / ".r.building"
    stage.mkdir()
    fd = os.open(stage, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    refused(*pair, tmp_path / "r", "another build")
    os.close(fd)
