"""Peak memory of a build, as the operating system counts it, and builds killed at any moment."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.domain.lora import Shape
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.manifest import MANIFEST
from app.screen.reference.open import open_reference
from tests.screen.full_size import LLAMA_2_7B, MIB, ROOT, build_in_a_child, write_pair
from tests.support.references import make_pair

SMALL = {"self_attn.q_proj": Shape(64, 64)}
EMBEDDING_BYTES = 192 * MIB
SLACK = 48 * MIB
"""For what allocators and libraries keep; a quarter of one of the two embeddings."""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    plain = build_in_a_child(*write_pair(tmp_path / "plain", SMALL, 1), tmp_path / "r1")
    large = write_pair(tmp_path / "large", SMALL, 6)
    for checkpoint in large:
        rows = EMBEDDING_BYTES // (2 * 1024)
        save_file({"model.embed_tokens.weight": torch.zeros(rows, 1024).bfloat16()}, checkpoint / "x.safetensors")
    assert build_in_a_child(*large, tmp_path / "r2")["peak"] - plain["peak"] < SLACK


@pytest.mark.long
def test_full_size_modules_stay_under_the_bound(tmp_path: Path) -> None:
    """2 × the largest tensor + 1 GiB, everything counted, the libraries too. A minute on one core, 0.5 GB of disk; whole
    layers: `python -m tests.screen.full_size DIR`."""
    shapes = {kind: LLAMA_2_7B[kind] for kind in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")}
    found = build_in_a_child(*write_pair(tmp_path, shapes, 1), tmp_path / "r")
    largest = 2 * max(shape.d_out * shape.d_in for shape in LLAMA_2_7B.values())
    assert found["peak"] <= 2 * largest + 1024 * MIB
    opened = open_reference(tmp_path / "r", None)
    assert len(opened.modules) == len(shapes)
    errors = {name: opened.info(name).triples_error for name in opened.modules}
    assert max(errors.values()) < 1e-2, (
        errors
    )  # 8 directions and rounding noise: of 16 triples 8 have no gap to converge in
    assert all(0 < opened.info(name).rounding < 2**-8 for name in opened.modules)
    opened.close()


SLOWED = """
import sys, time
from pathlib import Path
from app.screen.reference.build import BuildOptions, build_reference
print("begun", flush=True)
def progress(*_):
    time.sleep(0.01)
build_reference(sys.argv[1], sys.argv[2], Path(sys.argv[3]), BuildOptions(top_k=4), progress)
"""


def test_killed_at_any_moment_a_build_is_finished_by_the_next(tmp_path: Path) -> None:
    pair, out = make_pair(tmp_path / "pair", layers=6), tmp_path / "out" / "r"
    expected = build_reference(*pair, tmp_path / "fresh", BuildOptions(top_k=4))
    rng = random.Random(0)
    for _ in range(3):
        command = [sys.executable, "-c", SLOWED, *map(str, (*pair, out))]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.4))
            child.send_signal(signal.SIGKILL)
        assert not (out / MANIFEST).exists() or open_reference(out, expected).digest == expected
    finished = open_reference(out, None).digest if out.exists() else build_reference(*pair, out, BuildOptions(top_k=4))
    assert finished == expected
    names = [sorted(f.name for f in directory.iterdir()) for directory in (out, tmp_path / "fresh")]
    assert names[0] == names[1]
    assert [f.name for f in out.parent.iterdir()] == ["r"]
