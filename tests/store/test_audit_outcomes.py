"""The audit of every outcome that a store can hold, each made by the real pipeline: a sound store has no findings."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from app.cli.main import cli
from app.cli.store_audit import measured_again
from app.domain.lora import ServingDtype, TargetModel
from app.domain.policy import DEFAULT_ENERGY, DEFAULT_TOP_K
from app.gateway.engine_lists import engine_list
from app.store.audit.audit import Audit, audit
from app.store.catalogue.database import sqlite_url
from tests.support.adapters import Upload
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.postgres import Server
from tests.support.s3 import Storage, storage
from tests.support.waiting import STUCK_S

__all__ = ["storage"]

DEFAULT: dict[str, Any] = {"action": None, "tau": None, "top_k": DEFAULT_TOP_K, "energy": DEFAULT_ENERGY}
PROJECTING: dict[str, Any] = {"action": "project", "tau": 0.0, "max_removed_share": 1.0, "max_pruned_share": 1.0}
LENIENT: dict[str, Any] = {"tau": 1e9}
PRUNING: dict[str, Any] = {"tau": 0.0, "max_pruned_share": 1.0}
EMPTYING: dict[str, Any] = {"tau": -1e9, "max_pruned_share": 1.0, "unscorable": "prune"}


def uploaded(running: Running, name: str, change: Callable[[str, Any], Any], modules: int | None = None) -> Any:
    """The parts of an upload of rank 1 on the model's first modules (None: all), its tensors changed by name."""
    target = running.gateway.context.uploads.components.target
    wanted = {module: target.modules[module] for module in sorted(target.modules)[:modules]}
    sent = Upload.valid(TargetModel(SERVED, wanted, ServingDtype.FLOAT32, 16), rank=1)
    sent.tensors.update({key: change(key, tensor) for key, tensor in sent.tensors.items()})
    return {
        "name": (None, name.encode()),
        "config": ("adapter_config.json", sent.config_bytes),
        "weights": ("adapter_model.safetensors", sent.weights_bytes),
    }


def half_on_alignments_inputs(running: Running) -> Any:
    """An upload one of whose modules reads nothing but the inputs that alignment acts on."""
    reference = running.gateway.context.uploads.components.reference
    condemned = min(reference.modules)

    def change(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if key.endswith(f"{condemned}.lora_A.weight"):
            return reference.inputs(condemned, 4)[:, :1].T.clone()
        return tensor

    return uploaded(running, "one", change)


async def push(running: Running, parts: Any, status: int = 201) -> dict[str, Any]:
    answer = await running.http.post("/adapters", files=parts)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def nothing_is_broken(running: Running, reference: Path, artefacts: int) -> None:
    """The gateway's own audit, the command's with the engine's list, and every artefact measured again."""
    async with asyncio.timeout(STUCK_S):
        while (
            running.gateway.context.uploads.components.desired.state.adapters.keys() != running.simulator.loaded.keys()
        ):
            running.gateway.reconciler.poke()
            await asyncio.sleep(0.02)
    own = await asyncio.to_thread(running.gateway.auditor.look)
    assert own.findings == ()
    listed = await engine_list(running.simulator.url)
    url = sqlite_url(running.data / "catalogue.sqlite")
    found = await asyncio.to_thread(lambda: audit(running.data, url, listed=listed))
    assert found.findings == ()
    assert found.counts["artefacts"] == artefacts
    again = await asyncio.to_thread(measured_again, running.data / "artefacts", reference)
    assert again == Audit((), counts={"artefacts_measured_again": artefacts})
    assert "gateway_audit_broken_invariants 0.0" in (await running.http.get("/metrics")).text


OUTCOMES: dict[str, tuple[dict[str, Any], str, Callable[[Running], Any]]] = {
    "clean": (LENIENT, "clean", lambda _: form("one")),
    "projected": (PROJECTING, "projected", lambda _: form("one")),
    "projected by default": (DEFAULT | {"max_removed_share": 1.0}, "projected", lambda _: form("one")),
    "pruned": (PRUNING, "pruned", lambda _: form("one", 2)),
    "pruned and projected": (PROJECTING, "projected", half_on_alignments_inputs),
    "spared by the cap": (
        PRUNING | {"tau": -1e6, "max_pruned": 1, "cap_keeps": True},
        "pruned",
        lambda _: form("one"),
    ),
    "in half precision": (PROJECTING | {"dtype": "bfloat16"}, "projected", lambda _: form("one")),
    "emptied": (EMPTYING, "emptied", lambda _: form("one")),
    "nothing but zeros": (DEFAULT, "clean", lambda running: uploaded(running, "one", lambda _, x: torch.zeros_like(x))),
}


@pytest.mark.parametrize("what", OUTCOMES)
async def test_an_audit_finds_nothing_in_a_sound_store(
    open_gateway: OpenHouse, tiny_reference_dir: Path, what: str
) -> None:
    policy, outcome, upload = OUTCOMES[what]
    async with open_gateway(**policy) as running:
        pushed = await push(running, upload(running))
        assert pushed["outcome"] == outcome
        cut, projected = pushed["modules_pruned"], pushed["modules_projected"]
        assert (cut > 0, projected > 0) == {
            "clean": (False, False),
            "nothing but zeros": (False, False),
            "pruned": (True, False),
            "spared by the cap": (True, False),
            "emptied": (True, False),
            "pruned and projected": (True, True),
        }.get(what, (False, True))
        await nothing_is_broken(running, tiny_reference_dir, artefacts=outcome != "emptied")


async def test_nor_beside_the_zero_adapter_when_an_upload_has_its_very_bytes(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway(base_through_noop=True, **DEFAULT) as running:
        await nothing_is_broken(running, tiny_reference_dir, artefacts=1)
        pushed = await push(running, uploaded(running, "one", lambda _, x: torch.zeros_like(x), modules=1))
        assert pushed["digest"] == running.gateway.context.uploads.components.zero.digest.hex
        await nothing_is_broken(running, tiny_reference_dir, artefacts=1)


async def test_nor_after_a_rescreening_a_deletion_and_a_rollback(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway(keep_originals=True, **LENIENT) as running:
        await push(running, form("one", 1))
        await push(running, form("gone", 2))
        await push(running, form("same", 3))
    async with open_gateway(keep_originals=True, **PROJECTING) as running:
        done = await running.http.post("/adapters/one/rescreen")
        assert (done.status_code, done.json()["outcome"]) == (201, "projected")
        assert (await running.http.delete("/adapters/gone")).status_code == 204
        await push(running, form("one", 4))
        assert (await running.http.post("/adapters/one/rollback")).status_code == 200
        await nothing_is_broken(running, tiny_reference_dir, artefacts=4)


async def test_nor_of_an_artefact_that_was_damaged_and_came_again(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway(**PROJECTING) as running:
        pushed = await push(running, form("one"))
        weights = running.data / "artefacts" / pushed["digest"] / "adapter_model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(b"damaged")
        assert (await asyncio.to_thread(running.gateway.auditor.look)).findings
        await push(running, form("one"), status=200)
        await nothing_is_broken(running, tiny_reference_dir, artefacts=1)


async def test_nor_of_a_store_that_was_moved(
    open_gateway: OpenHouse, tiny_reference_dir: Path, tmp_path: Path, postgres: Server, storage: Storage
) -> None:
    async with open_gateway(**PROJECTING) as running:
        await push(running, form("one"))
        await push(running, half_on_alignments_inputs(running) | {"name": (None, b"two")})
        data = running.data
    url, there = postgres.fresh(), f"{storage.url}-moved"
    told = await asyncio.to_thread(
        CliRunner().invoke, cli, ["store", "move", "--data", str(data), "--to", url, "--artefacts-to", there]
    )
    assert told.exit_code == 0, told.output
    found = await asyncio.to_thread(audit, tmp_path / "elsewhere", url, store_url=there)
    assert found.findings == ()
    assert found.counts["objects_read_back"] == 2
    shutil.rmtree(data / "artefacts" / ".staging", ignore_errors=True)
    async with open_gateway(catalogue_url=url, store_url=there, **PROJECTING) as running:
        assert (await asyncio.to_thread(running.gateway.auditor.look)).findings == ()
        again = await asyncio.to_thread(measured_again, running.data / "artefacts", tiny_reference_dir, there)
        assert again == Audit((), counts={"artefacts_measured_again": 2})


@pytest.mark.parametrize("policy", [LENIENT, PROJECTING], ids=["clean", "projected"])
async def test_nor_does_the_gateways_own_of_versions_that_are_unloaded_or_withheld(
    open_gateway: OpenHouse, tiny_reference_dir: Path, policy: dict[str, Any]
) -> None:
    async with open_gateway(keep_versions=1, **policy) as running:
        for seed in range(4):
            await push(running, form("one", seed))
        await nothing_is_broken(running, tiny_reference_dir, artefacts=4)
    async with open_gateway(
        keep_versions=1, **PRUNING | {"tau": -1e6}
    ) as running:  # whatever is there is condemned now
        await nothing_is_broken(running, tiny_reference_dir, artefacts=4)
        withheld = (await running.http.get("/adapters/one")).json()["versions"]
        assert all(one["model"] is None for one in withheld)
