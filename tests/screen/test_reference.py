import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.digest import Digest, digest_of
from app.domain.errors import BAD_REFERENCE, Unavailable
from app.domain.policy import Comparison, Policy
from app.screen.reference.build import BuildOptions
from app.screen.reference.manifest import MANIFEST
from app.screen.reference.open import check_policy, open_reference, short_of_energy
from app.screen.screen import screen
from tests.support.references import make_reference, random_adapter, tiny_reference

Q = "model.layers.0.self_attn.q_proj"
V_FILE = f"{Q}.v.safetensors"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reference(tmp_path_factory.mktemp("built"))


@pytest.fixture
def directory(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "r")
    for file in (tmp_path / "r").iterdir():
        file.chmod(0o644)
    return tmp_path / "r"


def refused(directory: Path, *words: str, pinned: Digest | None = None) -> None:
    with pytest.raises(Unavailable) as caught:
        open_reference(directory, pinned)
    assert caught.value.code is BAD_REFERENCE
    for word in words:
        assert word in caught.value.message


def test_the_pinned_one_opens(directory: Path) -> None:
    digest = digest_of((directory / MANIFEST).read_bytes())
    opened = open_reference(directory, digest)
    assert opened.digest == digest
    opened.close()


@pytest.mark.ruling("G14")
def test_another_than_the_pinned_one_does_not(directory: Path) -> None:
    refused(directory, "pinned", "restore it or change the pin", pinned=Digest("0" * 64))


@pytest.mark.parametrize("file", [V_FILE, f"{Q}.triples.safetensors"])
@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_flipped_bit_anywhere_is_found(directory: Path, file: str, at: int) -> None:
    data = bytearray((directory / file).read_bytes())
    data[at] ^= 1
    (directory / file).write_bytes(data)
    refused(directory, file, "rebuild")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def link(file: Path) -> None:
    other = file.with_name("elsewhere")
    file.rename(other)
    file.symlink_to(other)


@pytest.mark.parametrize("damage", [truncate, Path.unlink, link])
@pytest.mark.ruling("G14")
def test_truncated_missing_and_linked_files_are_refused(directory: Path, damage: Callable[[Path], None]) -> None:
    damage(directory / V_FILE)
    refused(directory, V_FILE)


def change(directory: Path, edit: Callable[[dict[str, object]], object]) -> None:
    fields = json.loads((directory / MANIFEST).read_text())
    edit(fields)
    (directory / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "edit",
    [
        lambda f: f.update(format=3),
        lambda f: f.update(format="1"),
        lambda f: f.pop("modules"),
        lambda f: f.pop("base"),
        lambda f: f["modules"][0].pop("v_norm"),
        lambda f: f["modules"][0].update(v=None),
        lambda f: f["modules"][0].update(v_norm=0.0),
        lambda f: f["modules"][0].update(s1=float("nan")),
        lambda f: f["modules"][0].update(d_in=7),
        lambda f: f["modules"][0].update(surprise=1),
        lambda f: f["modules"][0]["v"].update(name="../elsewhere"),
        lambda f: f.update(compact=True),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(directory: Path, edit: Callable[[dict[str, object]], object]) -> None:
    change(directory, edit)
    refused(directory)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "{}"])
def test_a_manifest_that_is_none_is_refused(directory: Path, text: str) -> None:
    (directory / MANIFEST).write_text(text)
    refused(directory, MANIFEST)


@pytest.mark.ruling("O02")
def test_no_reference_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "not a finished reference")
    refused(tmp_path / "nothing", "not a finished reference")


# ---- changed while in use (F16) ----------------------------------------------------------------------------------


def test_a_small_reference_is_held_in_memory(directory: Path) -> None:
    opened = open_reference(directory, None)
    adapter = random_adapter(opened)
    before = screen(adapter, opened, Policy())
    for file in directory.iterdir():
        file.write_bytes(b"overwritten")
    shutil.rmtree(directory)
    assert screen(adapter, opened, Policy()) == before
    opened.close()


def test_a_mapped_reference_survives_replacement(directory: Path) -> None:
    opened = open_reference(directory, None, hold_bytes=0)
    adapter = random_adapter(opened)
    before = screen(adapter, opened, Policy())
    shutil.rmtree(directory)
    assert screen(adapter, opened, Policy()) == before
    opened.close()


@pytest.mark.parametrize("damage", ["overwrite", "grow"])
def test_a_mapped_reference_changed_in_place_screens_nothing(directory: Path, damage: str) -> None:
    opened = open_reference(directory, None, hold_bytes=0)
    adapter = random_adapter(opened)
    with (directory / V_FILE).open("r+b") as f:
        f.seek(0, os.SEEK_END if damage == "grow" else os.SEEK_SET)
        f.write(b"\xff" * 64)
    with pytest.raises(Unavailable, match="changed while in use") as caught:
        screen(adapter, opened, Policy())
    assert caught.value.code is BAD_REFERENCE
    opened.close()
    refused(directory, V_FILE)


def test_held_and_mapped_references_measure_the_same(directory: Path) -> None:
    held, mapped = open_reference(directory, None), open_reference(directory, None, hold_bytes=0)
    adapter = random_adapter(held)
    assert screen(adapter, held, Policy()) == screen(adapter, mapped, Policy())
    one, two = held.v(Q), mapped.v(Q)
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)
    held.close()
    mapped.close()


# ---- policy ------------------------------------------------------------------------------------------------------


@pytest.mark.ruling("O02")
def test_a_policy_the_reference_cannot_serve_is_refused_at_the_start(tmp_path: Path) -> None:
    compact = tiny_reference(tmp_path, options=BuildOptions(top_k=4, compact=True))
    check_policy(compact, Policy(comparison=Comparison.INPUT, top_k=4))
    for comparison in (Comparison.ALIGNMENT, Comparison.PROJECTION):
        with pytest.raises(Unavailable, match="compact"):
            check_policy(compact, Policy(comparison=comparison))
    with pytest.raises(Unavailable, match="takes out 5"):
        check_policy(compact, Policy(top_k=5))
    check_policy(compact, Policy(top_k=5, energy=0.5))
    compact.close()


def test_a_policy_that_asks_for_more_than_a_module_holds_is_told_which_and_what_to_do(tmp_path: Path) -> None:
    """Never silently less: neither inputs by their energy, nor outputs. The policy's own bound is no such asking."""
    few = tiny_reference(tmp_path, options=BuildOptions(energy=0.5, outputs=1))
    for name in few.alive:
        assert few.held(name) >= 0.5, "the build kept what it was told to"
    check_policy(few, Policy(energy=0.5, top_k=99))
    worst = min(few.alive, key=few.held)
    assert few.held(worst) < 0.9
    with pytest.raises(
        Unavailable, match=r"keeps \d+ inputs, which hold 0.\d+ of ‖V‖²; rung 0.9:1 takes out 0.9"
    ) as caught:
        check_policy(few, Policy(energy=0.9, top_k=99), "rung 0.9:1")
    assert "--energy 0.9" in caught.value.message
    assert caught.value.code is BAD_REFERENCE
    check_policy(few, Policy(energy=0.9, top_k=1))
    with pytest.raises(Unavailable, match=r"keeps 1 outputs; the policy takes out 2: .*--outputs 2"):
        check_policy(few, Policy(energy=0.5, top_k=99, project_outputs=2))
    few.close()


def test_a_reference_that_holds_all_of_v_serves_any_policy(tmp_path: Path) -> None:
    whole = tiny_reference(tmp_path, options=BuildOptions(energy=1.0, outputs=64))
    check_policy(whole, Policy(energy=1.0, top_k=500, project_outputs=500))
    check_policy(whole, Policy(energy=0.999, top_k=500, project_outputs=64))
    whole.close()


def test_references_of_the_format_before_open_and_keep_as_many_outputs_as_inputs(directory: Path) -> None:
    def older(fields: dict[str, Any]) -> None:
        fields["format"] = 1
        for one in fields["modules"]:
            del one["outputs"]

    now = open_reference(directory, None)
    change(directory, older)
    old = open_reference(directory, None)
    assert old.digest != now.digest
    for name in now.alive:
        assert (old.info(name).outputs, old.info(name).top_k) == (8, 8)
        assert torch.equal(old.outputs(name, 8), now.outputs(name, 8))
    adapter = random_adapter(old)
    policy = Policy(energy=0.5, top_k=512)
    one, two = (screen(adapter, reference, policy) for reference in (old, now))
    assert one.modules == two.modules
    old.close()
    now.close()


def test_v_may_be_asked_onto_a_device_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    directory = make_reference(tmp_path)
    here = open_reference(directory, None, device="cpu")
    assert all(here.v(name).device.type == "cpu" for name in here.modules)  # type: ignore[union-attr]
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(Unavailable, match=device) as caught:
            open_reference(directory, None, device=device)
        assert caught.value.code is BAD_REFERENCE


def test_modules_whose_strongest_inputs_hold_too_little_are_counted(tmp_path: Path) -> None:
    """So that the start can say where the reference keeps too few singular triples for the policy."""
    opened = tiny_reference(tmp_path)
    shares = []
    for name in opened.modules:
        v = opened.v(name)
        assert v is not None
        squares = torch.linalg.svdvals(v.double()).square()
        shares.append(float(squares[:1].sum() / squares.sum()))
    counts = set()
    for energy in (0.2, 0.5, 0.9, 0.99):
        expected = sum(share < energy for share in shares)
        assert short_of_energy(opened, Policy(top_k=1, energy=energy)) == expected
        counts.add(expected)
    assert len(counts) > 1
    assert short_of_energy(opened, Policy(top_k=1, energy=1.0)) == 0
    opened.close()
