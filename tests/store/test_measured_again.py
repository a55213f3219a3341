"""I9: what is stored, measured again, passes and stays what it is: `store audit --reference`."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner, Result

from app.cli import store_audit
from app.cli.main import cli
from app.cli.store_audit import AGAIN, NOTHING_SEEN, OLDER_METRIC, REMOVED, measured_again
from app.domain.digest import digest_of
from app.screen.reference.build import BuildOptions
from app.store.artefacts.s3_client import Objects
from app.store.audit.audit import Audit, Skipped
from tests.support.gateway import OpenHouse, Running, form
from tests.support.references import make_reference
from tests.support.s3 import Storage, storage

__all__ = ["storage"]


def command(data: Path, *arguments: str) -> Result:
    """`store audit` of this data directory."""
    return CliRunner().invoke(cli, ["store", "audit", "--data", str(data), "--patience", "0", *arguments])


POLICIES: dict[str, dict[str, Any]] = {
    "clean": {"tau": 1e6},
    "pruned": {"tau": 0.0, "max_pruned_share": 1.0},
    "projected": {"action": "project", "comparison": "input", "tau": 0.0, "max_removed_share": 1.0},
    "capped": {"tau": -1e6, "max_pruned": 1, "cap_keeps": True, "max_pruned_share": 1.0},
    "half": {"tau": 1e6, "dtype": "float16"},
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
async def test_what_a_gateway_stored_passes(
    open_gateway: OpenHouse, tiny_reference_dir: Path, policy: dict[str, Any]
) -> None:
    async with open_gateway(base_through_noop=True, **policy) as running:
        answers = [await running.http.post("/adapters", files=form("one", seed)) for seed in range(3)]
        assert {answer.status_code for answer in answers} == {201}
        found = await asyncio.to_thread(measured_again, running.data / "artefacts", tiny_reference_dir)
    there = len(list((running.data / "artefacts").glob("*/manifest.json")))
    assert there > 1
    assert found == Audit((), counts={"artefacts_measured_again": there})


async def test_what_the_gateway_removes_meanwhile_is_no_finding(
    open_gateway: OpenHouse, tiny_reference_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that was asked canaries, say, and is not served: it goes while the audit reads it."""
    async with open_gateway(tau=1e6) as running:
        for seed in range(2):
            assert (await running.http.post("/adapters", files=form("one", seed))).status_code == 201
        real, removed = store_audit._sanitised_again, list[Path]()

        def removed_meanwhile(folder: Path, *given: Any) -> str | None:
            if not removed:
                removed.append(folder)
                shutil.rmtree(folder)
            return real(folder, *given)

        monkeypatch.setattr(store_audit, "_sanitised_again", removed_meanwhile)
        found = await asyncio.to_thread(measured_again, running.data / "artefacts", tiny_reference_dir)
    assert found.findings == ()
    assert found.counts == {"artefacts_measured_again": 1}
    assert [part.why for part in found.skipped] == [f"1 artefacts {REMOVED}"]


def forged(running: Running, digest: str, size: float) -> str:
    """An artefact whose bytes were never screened, whole by every digest, under the verdict of another."""
    folder = running.data / "artefacts" / digest
    screened = load((folder / "adapter_model.safetensors").read_bytes())
    weights = save({name: torch.full_like(one, size) for name, one in screened.items()})
    config = (folder / "adapter_config.json").read_bytes()
    files = {"adapter_config.json": str(digest_of(config)), "adapter_model.safetensors": str(digest_of(weights))}
    name = str(digest_of("".join(f"{file}\0{sha}\n" for file, sha in sorted(files.items())).encode()))
    manifest = json.loads((folder / "manifest.json").read_bytes()) | {"digest": name, "files": files}
    made = running.data / "artefacts" / name
    made.mkdir()
    for file, data in (
        ("adapter_config.json", config),
        ("adapter_model.safetensors", weights),
        ("manifest.json", json.dumps(manifest).encode()),
    ):
        (made / file).write_bytes(data)
        (made / file).chmod(0o444)
    os.chmod(made, 0o755)
    return name


async def test_bytes_that_nobody_screened_are_found_though_every_digest_is_right(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway(max_update_ratio=100.0) as running:
        version = (await running.http.post("/adapters", files=form("one"))).json()
        name = forged(running, version["digest"], 50.0)
        seen = await asyncio.to_thread(running.gateway.auditor.look)
        assert not seen.findings  # structure tells nothing
    findings = measured_again(running.data / "artefacts", tiny_reference_dir).findings
    assert [(one.invariant, one.where) for one in findings] == [("I9", f"artefact {name[:12]}")]
    told = command(running.data, "--reference", str(tiny_reference_dir))
    assert told.exit_code == 1
    assert "I9" in told.output


async def test_what_another_reference_measured_is_noted_and_not_judged(
    open_gateway: OpenHouse, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_gateway() as running:
        await running.http.post("/adapters", files=form("one"))
    other = make_reference(tmp_path_factory.mktemp("other"), options=BuildOptions(top_k=4))
    found = measured_again(running.data / "artefacts", other)
    assert (found.findings, found.counts) == ((), {"artefacts_measured_again": 0})
    assert found.skipped == (Skipped(AGAIN, "1 artefacts were measured against another reference", asked=True),)
    told = command(running.data, "--reference", str(other))
    assert told.exit_code == NOTHING_SEEN
    assert "This is no all-clear: asked for and not looked at: what is stored, measured again" in told.output


async def test_what_an_older_release_measured_is_noted_and_not_judged(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway() as running:
        digest = (await running.http.post("/adapters", files=form("one"))).json()["digest"]
    manifest = running.data / "artefacts" / digest / "manifest.json"
    fields = json.loads(manifest.read_bytes())
    fields["verdict"]["metric"] = "e-diem/1"
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(fields), encoding="utf-8")
    found = measured_again(running.data / "artefacts", tiny_reference_dir)
    assert (found.findings, found.counts) == ((), {"artefacts_measured_again": 0})
    assert found.skipped == (Skipped(AGAIN, f"1 artefacts {OLDER_METRIC}", asked=True),)


async def test_artefacts_are_measured_again_wherever_they_are_kept(
    open_gateway: OpenHouse, tiny_reference_dir: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "shared"
    async with open_gateway(artefacts=elsewhere) as running:
        await running.http.post("/adapters", files=form("one"))
    reference = ("--reference", str(tiny_reference_dir))
    told = command(running.data, "--artefacts", str(elsewhere), *reference)
    assert told.exit_code == 0, told.output
    assert "1 artefacts measured again" in told.output
    nothing = command(running.data, "--artefacts", str(tmp_path / "nowhere"), *reference)
    assert nothing.exit_code == 1  # the version's artefact is not there
    assert "nowhere is no directory" in nothing.output


async def test_what_has_no_copy_here_is_measured_from_the_object_storage(
    open_gateway: OpenHouse, tiny_reference_dir: Path, storage: Storage
) -> None:
    async with open_gateway(store_url=storage.url) as running:
        digest = (await running.http.post("/adapters", files=form("one"))).json()["digest"]
    (running.data / "artefacts" / digest).chmod(0o755)
    shutil.rmtree(running.data / "artefacts" / digest)
    at = (running.data / "artefacts", tiny_reference_dir, storage.url)
    assert await asyncio.to_thread(measured_again, *at) == Audit((), counts={"artefacts_measured_again": 1})
    await asyncio.to_thread(Objects(storage.url).delete, f"{digest}/adapter_model.safetensors")
    found = await asyncio.to_thread(measured_again, *at)
    assert found.skipped == (Skipped(AGAIN, "1 artefacts could not be read from the object storage", asked=True),)


async def test_a_store_without_artefacts_has_none_to_measure_and_says_so(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway() as running:
        pass
    told = command(running.data, "--reference", str(tiny_reference_dir))
    assert told.exit_code == 0, told.output
    assert "0 adapters, 0 versions, 0 artefacts" in told.output
    assert "0 artefacts measured again" in told.output
