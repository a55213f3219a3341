"""A checkpoint on disk is told apart from the reference's aligned one and its base, and read no more often than needed."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from app.domain.digest import Digest
from app.domain.errors import BAD_REFERENCE, Unavailable
from app.screen import served
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.checkpoint import Checkpoint
from app.screen.reference.manifest import Manifest
from app.screen.reference.open import open_reference
from app.screen.served import CACHE, difference
from tests.support.references import TINY, aligned_from, make_pair, weights, write_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def manifest(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("reference") / "r"
    build_reference(*pair, out, BuildOptions(top_k=4))
    opened = open_reference(out, None)
    opened.close()
    return opened.manifest


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors whose bytes were read."""
    found: list[str] = []
    original = Checkpoint.digest

    def noting(self: Checkpoint, name: str) -> Digest:
        found.append(name)
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "digest", noting)
    return found


def test_the_aligned_one_is_known_and_read_once(
    pair: tuple[Path, Path], manifest: Manifest, tmp_path: Path, hashed: list[str]
) -> None:
    assert difference(pair[1], manifest, tmp_path / "data" / CACHE) is None
    assert len(hashed) == len(Checkpoint(pair[1]).shapes)
    hashed.clear()
    assert difference(pair[1], manifest, tmp_path / "data" / CACHE) is None
    assert not hashed
    assert [path.name for path in (tmp_path / "data").iterdir()] == [CACHE]


def test_the_base_is_called_the_base(pair: tuple[Path, Path], manifest: Manifest, tmp_path: Path) -> None:
    for _ in range(2):  # read, and remembered
        said = difference(pair[0], manifest, tmp_path / CACHE)
        assert said == "the model is the reference's base checkpoint, not its aligned one"


def test_how_the_tensors_are_spread_over_files_does_not_matter(manifest: Manifest, tmp_path: Path) -> None:
    sharded = write_checkpoint(tmp_path / "s", aligned_from(weights(0)), files=3)
    assert difference(sharded, manifest, tmp_path / CACHE) is None


@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_one_number_of_one_tensor_makes_another_model(manifest: Manifest, tmp_path: Path, tensor: str) -> None:
    changed = aligned_from(weights(0))
    changed[tensor] = changed[tensor].clone()
    changed[tensor][0, 0] += 1e-3
    said = difference(write_checkpoint(tmp_path / "c", changed), manifest, tmp_path / CACHE)
    assert said is not None
    assert "neither" in said


def test_other_modules_and_shapes_are_told_before_anything_is_read(
    manifest: Manifest, tmp_path: Path, hashed: list[str]
) -> None:
    shallow = write_checkpoint(tmp_path / "shallow", aligned_from(weights(0, layers=1)))
    assert "no tensor model.layers.1." in (difference(shallow, manifest, tmp_path / CACHE) or "")
    shapes = {**TINY, "mlp.down_proj": TINY["self_attn.q_proj"]}
    narrow = write_checkpoint(tmp_path / "narrow", aligned_from(weights(0, shapes=shapes)))
    assert "down_proj.weight is 64 × 64, in the" in (difference(narrow, manifest, tmp_path / CACHE) or "")
    assert not hashed


def test_a_converted_one_counts_as_another(manifest: Manifest, tmp_path: Path) -> None:
    half = write_checkpoint(tmp_path / "half", aligned_from(weights(0)), dtype=torch.bfloat16)
    assert "converted" in (difference(half, manifest, tmp_path / CACHE) or "")


@pytest.mark.parametrize("in_place", [False, True])
def test_another_file_of_the_same_size_and_time_is_noticed(
    pair: tuple[Path, Path], manifest: Manifest, tmp_path: Path, in_place: bool
) -> None:
    where = Path(shutil.copytree(pair[1], tmp_path / "served"))
    file, beside = where / "model.safetensors", tmp_path / "beside.safetensors"
    os.utime(file, ns=(0, 0))  # as an image's layers have it
    assert difference(where, manifest, tmp_path / CACHE) is None
    before = file.stat()
    if in_place:
        file.write_bytes((pair[0] / file.name).read_bytes())
    else:
        shutil.copyfile(pair[0] / file.name, beside)
        beside.rename(file)
    os.utime(file, ns=(0, 0))
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # a clock of milliseconds
        os.utime(file, ns=(0, 0))
    assert (before.st_size, before.st_mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert "base" in (difference(where, manifest, tmp_path / CACHE) or "")


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"x": 1}', b"\xff", b'{"x": ["a", "b"]}'])
def test_a_damaged_cache_is_no_cache(
    pair: tuple[Path, Path], manifest: Manifest, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / CACHE).write_bytes(damage)
    assert difference(pair[1], manifest, tmp_path / CACHE) is None
    assert "base" in (difference(pair[0], manifest, tmp_path / CACHE) or "")


def test_what_was_written_to_while_it_was_read_is_not_remembered(
    pair: tuple[Path, Path], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Path(shutil.copytree(pair[1], tmp_path / "served"))
    original = Checkpoint.digest

    def touching(self: Checkpoint, name: str) -> Digest:
        os.utime(where / "model.safetensors")
        return original(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "digest", touching)
        assert difference(where, manifest, tmp_path / CACHE) is None
    assert not served._read(tmp_path / CACHE)


def test_nothing_to_read_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Unavailable, match="no safetensors files") as caught:
        difference(tmp_path, manifest, tmp_path / CACHE)
    assert caught.value.code is BAD_REFERENCE
