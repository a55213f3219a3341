"""`screen`, `reference build` and `reference inspect` as an operator runs them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.demo.assets import REFERENCE
from app.domain.policy import DEFAULT_ENERGY, DEFAULT_TOP_K, Policy
from app.screen.reference.build import BuildOptions
from app.screen.reference.open import open_reference
from tests.support.adapters import PEFT_DEFAULTS, key
from tests.support.references import (
    aligned_from,
    make_pair,
    make_reference,
    random_adapter,
    weights,
    write_checkpoint,
)

ROOT = Path(__file__).parents[2]
Q = "model.layers.0.self_attn.q_proj"


PRUNING = ("--action", "prune", "--tau", "3")


def run(*args: str | Path, columns: int = 200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reference(tmp_path_factory.mktemp("reference"))


def write(directory: Path, reference: Path, planted: Sequence[str] = (), **config: Any) -> Path:
    """A random adapter of rank 4 on every module, made of V's own top inputs in `planted`."""
    opened = open_reference(reference, None)
    tensors: dict[str, torch.Tensor] = {}
    for module in random_adapter(opened).modules:
        triples = opened.triples(module.name)
        assert triples is not None
        a = triples.r[:, :4].T if module.name in planted else module.a
        tensors |= {key(module.name, "A"): a.contiguous().clone(), key(module.name, "B"): module.b}
    opened.close()
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    fields = {**PEFT_DEFAULTS, "r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(fields | config))
    return directory


def test_clean_is_0_and_every_number_of_the_json_stands_in_the_table(reference: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", reference)
    table, told = (run("screen", *PRUNING, adapter, "--reference", reference, *more) for more in ((), ("--json",)))
    assert (table.returncode, told.returncode) == (0, 0), table.stderr + told.stderr
    report = json.loads(told.stdout)
    assert report["outcome"] == "clean"
    rows = {line.split()[0]: line for line in table.stdout.splitlines() if "_proj" in line and "below_tau" in line}
    assert len(rows) == len(report["modules"]) == 8
    for module in report["modules"]:
        row = rows[module["name"].removeprefix("model.layers.")].split()
        scores = [f"{module['scores'][c]:.2f}" for c in ("projection", "alignment", "input")]
        ratio = f"{module['update_norm'] / module['v_norm']:.3f}"
        assert row[1:6] == [*scores, f"{module['safe_lora_cosine']:.3f}", ratio]
    for when in ("received", "kept"):
        whole = report["together"][when]["adapter"]
        line = next(line for line in table.stdout.splitlines() if line.strip().startswith(f"{when}: all"))
        assert line.split()[2:5] == [str(whole["modules"]), f"{whole['score']:.2f}", f"{whole['expected']:.2f}"]
    assert "safe" not in table.stdout.lower().replace("safe_lora", "")


def test_changed_is_3(reference: Path, tmp_path: Path) -> None:
    done = run("screen", *PRUNING, write(tmp_path / "a", reference, planted=[Q]), "--reference", reference, "--json")
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["outcome"] == "pruned"
    assert [m["name"] for m in report["modules"] if m["decision"] == "prune"] == [Q]
    before, after = (report["together"][when]["adapter"] for when in ("received", "kept"))
    assert (before["modules"], after["modules"]) == (8, 7)
    assert before["score"] > after["score"]


def test_rejected_is_2(reference: Path, tmp_path: Path) -> None:
    planted = [name for name in open_reference(reference, None).modules if "down" not in name]
    done = run("screen", *PRUNING, write(tmp_path / "a", reference, planted=planted), "--reference", reference)
    assert done.returncode == 2
    assert "rejected: 6 of 8 modules are condemned" in done.stdout


def test_tau_and_comparison_are_the_operators(reference: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", reference, planted=[Q])
    assert run("screen", *PRUNING, adapter, "--reference", reference, "--tau", "1e9").returncode == 0
    done = run("screen", *PRUNING, adapter, "--reference", reference, "--comparison", "alignment", "--json")
    assert json.loads(done.stdout)["policy"]["comparison"] == "alignment"


def spoil_nothing(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def spoil_config(adapter: Path) -> None:
    fields = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(fields | {"use_dora": True}))


def spoil_values(adapter: Path) -> None:
    bad = torch.full((4, 64), float("nan"))
    tensors = {key(Q, "A"): bad, key(Q, "B"): torch.ones(64, 4)}
    save_file(tensors, adapter / "adapter_model.safetensors")


def spoil_bytes(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(spoil_nothing, "No such file"), (spoil_config, "use_dora"), (spoil_values, "not finite"), (spoil_bytes, "")],
)
def test_invalid_is_2_with_one_clear_line(reference: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    adapter = write(tmp_path / "a", reference)
    spoil(adapter)
    done = run("screen", *PRUNING, adapter, "--reference", reference, "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_reference_screens_nothing(reference: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", reference)
    shutil.copytree(reference, tmp_path / "r")
    victim = tmp_path / "r" / f"{Q}.v.safetensors"
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-2])
    done = run("screen", *PRUNING, adapter, "--reference", tmp_path / "r")
    assert done.returncode == 2
    assert victim.name in done.stderr.replace("\n", "")


def test_a_reference_is_built_and_inspected(tmp_path: Path) -> None:
    base, aligned = make_pair(tmp_path / "pair")
    out = tmp_path / "r"
    built = run("reference", "build", "--base", base, "--aligned", aligned, "--out", out, "--compact", "--top-k", "5")
    assert built.returncode == 0, built.stderr
    opened = open_reference(out, None)
    assert f"GATEWAY_REFERENCE_DIGEST={opened.digest}" in built.stdout
    assert opened.compact
    assert opened.manifest.top_k == 5
    shown = run("reference", "inspect", out)
    assert shown.returncode == 0
    for name in opened.modules:
        row = next(
            line.replace("│", " ").split() for line in shown.stdout.splitlines() if line.strip().startswith(name)
        )
        info = opened.info(name)
        assert f"{info.v_norm:.4g}" in row
        assert f"{info.lambda_max:.4g}" in row
        assert f"{info.d_out} × {info.d_in}" in " ".join(row)
        half = opened.singular_vectors(name, Policy(energy=DEFAULT_ENERGY, top_k=DEFAULT_TOP_K)).r.shape[1]
        assert row[-3:] == [f"5:{info.outputs}", f"{opened.held(name):.3f}", str(half)]
    least = min(map(opened.held, opened.modules))
    for text in (built.stdout, shown.stdout):
        assert f"5 to 5, median 5; they hold {least:.3f}" in text
        most = max(opened.needs(name, 0.8) or 99 for name in opened.modules)
        assert f"; 0.8: {most}, {most}; 0.9:" in text
    assert "96 × 192" in run("reference", "inspect", REFERENCE).stdout  # also beside names as long as real ones are
    told = json.loads(run("reference", "inspect", out, "--json").stdout)
    assert told["digest"] == str(opened.digest)
    assert {one["name"] for one in told["modules"]} == opened.modules.keys()
    assert {one["name"]: one["v_norm"] for one in told["modules"]} == {
        name: opened.info(name).v_norm for name in opened.modules
    }
    assert all(one["held"] == opened.held(one["name"]) for one in told["modules"])
    asked = ("--compact", "--top-k", "5", "--json")
    twin = run("reference", "build", "--base", base, "--aligned", aligned, "--out", tmp_path / "twin", *asked)
    assert json.loads(twin.stdout) == {"reference": str(tmp_path / "twin"), "digest": str(opened.digest)}
    again = run("reference", "build", "--base", base, "--aligned", aligned, "--out", out)
    assert (again.returncode, "already exists" in again.stderr) == (1, True)


def test_a_reference_holds_the_energy_it_is_told_to(tmp_path: Path) -> None:
    base, aligned = make_pair(tmp_path / "pair")
    asked = ("reference", "build", "--base", base, "--aligned", aligned)
    built = run(*asked, "--out", tmp_path / "r", "--compact", "--energy", "0.95", "--outputs", "2")
    assert built.returncode == 0, built.stderr
    opened = open_reference(tmp_path / "r", None)
    assert min(map(opened.held, opened.modules)) >= 0.95
    assert max(opened.info(name).outputs for name in opened.modules) == 2
    wrong = run(*asked, "--out", tmp_path / "none", "--energy", "1.5")
    assert (wrong.returncode, "energy must be" in wrong.stderr) == (2, True)


def test_the_sizes_of_references_are_printed() -> None:
    shown = run("reference", "sizes").stdout
    row = next(line.split() for line in shown.splitlines() if "Llama-2-7B" in line)
    assert row[1] == "13.0", "V in bfloat16: two bytes a weight"
    told = json.loads(run("reference", "sizes", "--json").stdout)
    (size,) = [sizes["v_bfloat16"] for model, sizes in told.items() if model in shown and "Llama-2-7B" in model]
    assert f"{size / 1e9:.1f}" == "13.0"


def test_a_glob_builds_some_modules_and_a_mismatch_builds_none(tmp_path: Path) -> None:
    base, aligned = make_pair(tmp_path / "pair")
    out = tmp_path / "r"
    done = run("reference", "build", "--base", base, "--aligned", aligned, "--out", out, "--modules", "*.q_proj")
    assert done.returncode == 0, done.stderr
    assert all(name.endswith("q_proj") for name in open_reference(out, None).modules)
    other, _ = make_pair(tmp_path / "other", layers=3)
    done = run("reference", "build", "--base", base, "--aligned", other, "--out", tmp_path / "none")
    assert done.returncode == 1
    assert "model.layers.2." in done.stderr
    assert not (tmp_path / "none").exists()


def test_modules_that_alignment_left_alone_are_named_when_the_reference_is_built(tmp_path: Path) -> None:
    base, aligned = weights(0), aligned_from(weights(0))
    same = {name: w for name, w in base.items() if "self_attn" in name}
    pair = [write_checkpoint(tmp_path / name, tensors) for name, tensors in (("b", base), ("a", {**aligned, **same}))]
    built = run("reference", "build", "--base", pair[0], "--aligned", pair[1], "--out", tmp_path / "r")
    assert built.returncode == 0, built.stderr
    for word in ("6 of 8 modules", Q, "GATEWAY_UNSCORABLE", "reject"):
        assert word in built.stderr
    again = run("reference", "build", "--base", pair[0], "--aligned", pair[0], "--out", tmp_path / "none")
    assert "name the unaligned checkpoint" in again.stderr
    assert "python -m app reference build" not in again.stderr


def test_a_compact_reference_screens_by_input(tmp_path: Path) -> None:
    compact = make_reference(tmp_path / "c", options=BuildOptions(top_k=8, compact=True))
    adapter = write(tmp_path / "a", compact)
    assert run("screen", *PRUNING, adapter, "--reference", compact).returncode == 0
    refused = run("screen", *PRUNING, adapter, "--reference", compact, "--comparison", "alignment")
    assert (refused.returncode, "compact" in refused.stderr) == (2, True)


def test_the_version_is_told() -> None:
    from app import __version__

    assert run("--version").stdout == f"lora-gateway {__version__}\n"


def test_an_adapter_without_effect_is_said_to_have_none(reference: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", reference)
    weights_file = adapter / "adapter_model.safetensors"
    tensors = load_file(weights_file)
    save_file({name: torch.zeros_like(t) if "lora_B" in name else t for name, t in tensors.items()}, weights_file)
    done = run("screen", *PRUNING, adapter, "--reference", reference, "--json")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (0, "clean")
    assert "note: the update is zero in every module" in done.stderr
