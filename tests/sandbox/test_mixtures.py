"""Adapters on experts through the real sandbox: the same bytes as outside it, with cut experts and on rungs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load

from app.domain.artefact import Artefact
from app.domain.policy import Action, Policy
from app.domain.rungs import policies, rungs_from
from app.domain.verdict import Outcome
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure, Sanitise, sanitise
from app.validate.adapter import ValidateLimits
from tests.adapters.test_experts import RECEIVED
from tests.support.mixtures import files_of, reference_of, save_adapter, target
from tests.support.sandboxes import MEMORY, Heard

CUTTING = Policy(action=Action.PRUNE, tau=0.0, top_k=4, max_pruned_share=1.0)
FLOOR = Policy(action=Action.PROJECT, tau=0.0, energy=0.3, top_k=16, max_update_ratio=1e9, max_removed_share=1.0)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Measure, Path]]:
    directory = tmp_path_factory.mktemp("mixture")
    reference, model = reference_of("qwen3_moe", directory, top_k=16)
    save_adapter(model, directory / "adapter", target_modules=["q_proj"])
    config, _ = files_of(directory / "adapter")
    yield Measure(target(reference), ValidateLimits(max_config_bytes=len(config)), reference, CUTTING, 60.0), directory
    reference.close()


def made(work: Sanitise, config: bytes, weights: bytes, path: Path, rung: int = 0) -> tuple[Artefact, Heard]:
    path.write_bytes(weights)
    heard = Heard()
    with path.open("rb") as file:
        artefact = work(config, file, RECEIVED, heard, rung=rung)
    assert artefact is not None
    return artefact, heard


def outside(measure: Measure) -> Sanitise:
    return partial(sanitise, measure)


def test_a_layer_with_cut_experts_leaves_the_sandbox_whole(mixture: tuple[Measure, Path], tmp_path: Path) -> None:
    measure, directory = mixture
    files = files_of(directory / "adapter")
    sandbox = Sandbox(measure, directory / "reference", MEMORY)
    try:
        inside, heard = made(sandbox, *files, tmp_path / "inside")
    finally:
        sandbox.close()
    other, _ = made(outside(measure), *files, tmp_path / "outside")
    assert inside.digest == other.digest
    assert heard.verdict is not None
    assert heard.verdict.outcome is Outcome.PRUNED
    cut = [name for name in heard.verdict.pruned if ".experts." in name]
    tensors = load(inside.weights)
    assert cut
    assert len([name for name in tensors if ".experts." in name]) == 2 * 2 * 3 * 3
    assert not any(bool(tensors[f"base_model.model.{name}.lora_{side}.weight"].any()) for name in cut for side in "AB")


def test_rungs_are_made_from_an_artefact_that_names_every_expert(mixture: tuple[Measure, Path], tmp_path: Path) -> None:
    """Its configuration is ours and longer than an upload's may be."""
    measure, directory = mixture
    ladder = replace(measure, policy=FLOOR, rungs=policies(FLOOR, rungs_from("0.5:1,0.7:2")))
    sandbox = Sandbox(ladder, directory / "reference", MEMORY)
    try:
        floor, _ = made(sandbox, *files_of(directory / "adapter"), tmp_path / "floor")
        inside, heard = made(sandbox, floor.config, floor.weights, tmp_path / "rung", rung=2)
    finally:
        sandbox.close()
    assert len(floor.config) > measure.limits.max_config_bytes
    other, _ = made(outside(ladder), floor.config, floor.weights, tmp_path / "other", rung=2)
    assert inside.digest == other.digest != floor.digest
    assert heard.verdict is not None
    assert heard.verdict.outcome is Outcome.PROJECTED
