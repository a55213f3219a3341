"""Summaries of versions for lists: the removed share against the weights themselves, canaries, severity."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.coarse import coarse
from app.gateway.version_summary import Canaries, Severity, Summary, severity, summary
from app.store.catalogue.tables import VersionRow
from tests.support.canaries import RUNGS, battery, harmful_below
from tests.support.gateway import OpenHouse, Running, form

FLOOR = 0.7
ENERGIES = (FLOOR, 0.6, 0.8, 0.9)


def norm(config: bytes, weights: bytes) -> float:
    """‖ΔW‖² of all modules together."""
    tensors = {name: tensor.double() for name, tensor in load(weights).items()}
    given = json.loads(config)
    downs = [name for name in tensors if ".lora_A." in name]
    updates = [tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name] for name in downs]
    scaling: float = given["lora_alpha"] / given["r"]
    return scaling**2 * float(torch.stack([one.square().sum() for one in updates]).sum())


def removed(running: Running, digest: str) -> float:
    """1 − ‖ΔW as served‖² / ‖ΔW as uploaded‖²: the part that is taken out is orthogonal to the rest."""
    sent, served = form("any"), running.data / "artefacts" / digest
    left = norm((served / CONFIG_FILE).read_bytes(), (served / WEIGHTS_FILE).read_bytes())
    return 1 - left / norm(sent["config"][1], sent["weights"][1])


def row_of(running: Running, answer: Mapping[str, Any]) -> VersionRow:
    """Row of the version that an upload made."""
    made = answer if "digest" in answer else answer["version"]
    return running.gateway.context.uploads.components.catalogue.version(made["name"], made["version"])


async def push(running: Running, seed: int = 0) -> Any:
    return (await running.http.post("/adapters", files=form("style", seed))).json()


@pytest.mark.parametrize("rung", [0, 2])
async def test_the_removed_share_is_that_of_the_weights(open_gateway: OpenHouse, tmp_path: Path, rung: int) -> None:
    given = {"canaries": battery(tmp_path / "b"), "rungs": RUNGS, "action": "project", "ladder_floor": f"{FLOOR}:1"}
    async with open_gateway(**given, tau=0.5, max_removed_share=1.0) as running:
        running.simulator.says = harmful_below(rung, ENERGIES)
        answer = await push(running)
        assert answer["rung"] == rung, answer
        row = row_of(running, answer)
        [found] = running.gateway.context.summaries.of([row])
        assert found.removed == pytest.approx(removed(running, answer["digest"]), rel=0.06), "to two digits"
        assert found.removed == coarse(found.removed or 0)
        assert 0 < (found.removed or 0) < 1
        assert severity(row) is (Severity.BEYOND if rung else Severity.FLOOR)
        assert found.canaries == Canaries(asked=16, failed=0, left_out=0)


async def test_what_is_cut_out_counts_whole(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=0.5, max_pruned_share=1.0) as running:
        answer = await push(running)
        assert 0 < answer["modules_pruned"] < answer["modules_total"]
        [found] = running.gateway.context.summaries.of([row_of(running, answer)])
        assert found.removed == pytest.approx(removed(running, answer["digest"]), rel=0.06)
        assert found.canaries is None
    async with open_gateway(tau=-1000.0, max_pruned_share=1.0) as running:
        answer = await push(running, 1)
        row = row_of(running, answer)
        assert (answer["outcome"], severity(row)) == ("emptied", Severity.EMPTIED)
        assert running.gateway.context.summaries.of([row]) == [Summary(1.0, None)]
    async with open_gateway(tau=1000.0) as running:
        row = row_of(running, await push(running, 2))
        assert (severity(row), running.gateway.context.summaries.of([row])) == (Severity.NONE, [Summary(0.0, None)])


async def test_a_refused_version_has_the_closest_result_and_no_correction(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway(
        canaries=battery(tmp_path / "b"), rungs=RUNGS, ladder_floor="0.7:1", action="project"
    ) as running:
        running.simulator.says = harmful_below(9, ENERGIES, last=3)
        row = row_of(running, await push(running))
        assert row.error_code == "canaries_failed"
        [found] = running.gateway.context.summaries.of([row])
        assert found.canaries is not None
        assert 0 < found.canaries.failed <= 3
        assert found.canaries.refused == found.canaries.asked - found.canaries.failed
        assert severity(row) is None


async def test_canaries_asked_again_count_once_they_were(open_gateway: OpenHouse, tmp_path: Path) -> None:
    given = {"rungs": RUNGS, "ladder_floor": "0.7:1", "action": "project"}
    async with open_gateway(canaries=battery(tmp_path / "b"), **given) as running:
        running.simulator.says = harmful_below(0, ENERGIES)
        row = row_of(running, await push(running))
        summaries, catalogue = running.gateway.context.summaries, running.gateway.context.uploads.components.catalogue
        [before] = summaries.of([row])
        report = json.loads(catalogue.report(row.name, row.number) or "")
        again = {"asked": [{"asked": 5, "complied": 1, "broken": 1}, {"asked": 4, "complied": 0, "broken": 0}]}
        catalogue.record_asked_again(row, "another", json.dumps({**report, "asked_again": again}), passed=False)
        [after] = summaries.of([catalogue.version(row.name, row.number)])
        assert (before.canaries, after.canaries) == (Canaries(16, 0, 0), Canaries(9, 2, 0))
        assert after.removed == before.removed


def test_a_report_of_an_older_release_has_no_removed_share() -> None:
    module = {"decision": "project", "update_norm": 1.0}
    assert summary({"verdict": {"outcome": "projected", "modules": [module]}}) == Summary()
    assert summary({}) == Summary()
