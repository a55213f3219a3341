"""Rungs of the ladder, made from the stored artefact: the same in the sandbox and outside, and as made from the upload."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from app.domain.artefact import Artefact
from app.domain.digest import digest_of
from app.domain.errors import SCREENING_KILLED, Refused, Stage
from app.domain.lora import Received
from app.domain.policy import Action, Policy
from app.domain.rungs import policies, rungs_from
from app.domain.verdict import Outcome, Verdict
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure, Sanitise, sanitise
from tests.support.adapters import Upload
from tests.support.sandboxes import MEMORY

RUNGS = "0.5:1,0.7:2,0.95:4"
ROUNDING = 2.0**-20
"""Share by which two float32 factorisations of one update may differ: balancing runs once more on one of the ways."""


class Heard:
    """Steps that keep the verdict."""

    verdict: Verdict | None = None

    def took(self, stage: Stage, seconds: float, outcome: str) -> None: ...

    def validated(self) -> None: ...

    def screened(self, verdict: Verdict) -> None:
        self.verdict = verdict


@pytest.fixture(scope="module")
def ladder(measure: Measure) -> Measure:
    """A floor that projects, and rungs above it."""
    floor = Policy(action=Action.PROJECT, tau=0.0, energy=0.3, top_k=16, max_update_ratio=1e9, max_removed_share=1.0)
    made = policies(floor, rungs_from(RUNGS))
    names = frozenset({"org/somebody-elses-name"})
    return replace(measure, policy=floor, rungs=made, limits=replace(measure.limits, base_names=names))


@pytest.fixture(scope="module")
def sandbox(ladder: Measure, tiny_reference_dir: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(ladder, tiny_reference_dir, MEMORY)
    sandbox.start()
    yield sandbox
    sandbox.close()


@pytest.fixture
def sent(upload: Upload) -> Upload:
    return replace(upload, config={**upload.config, "base_model_name_or_path": "org/somebody-elses-name"})


def received_of(sent: Upload) -> Received:
    config, weights = sent.config_bytes, sent.weights_bytes
    return Received(digest_of(config), digest_of(weights), len(config), len(weights))


def made(work: Sanitise, sent: Upload, files: tuple[bytes, bytes], path: Path, rung: int) -> tuple[Artefact, Verdict]:
    """The artefact of a rung, from these two files."""
    path.write_bytes(files[1])
    heard = Heard()
    with path.open("rb") as weights:
        artefact = work(files[0], weights, received_of(sent), heard, rung=rung)
    assert artefact is not None
    assert heard.verdict is not None
    return artefact, heard.verdict


def update(weights: bytes) -> dict[str, Tensor]:
    """ΔW of each module, in float64."""
    tensors = {name: tensor.double() for name, tensor in load(weights).items()}
    return {
        name: tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name] for name in tensors if ".lora_A." in name
    }


def inside(ladder: Measure) -> Sanitise:
    def work(
        config: bytes, weights: io.BufferedReader, received: Received, steps: Heard, *, rung: int = 0
    ) -> Artefact | None:
        return sanitise(ladder, config, weights, received, steps, rung=rung)

    return work  # type: ignore[return-value]


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_a_rung_is_the_same_in_the_sandbox_and_outside_and_carries_its_own_policy(
    ladder: Measure, sandbox: Sandbox, sent: Upload, tmp_path: Path, rung: int
) -> None:
    floor, _ = made(sandbox, sent, (sent.config_bytes, sent.weights_bytes), tmp_path / "sent", 0)
    there, verdict = made(sandbox, sent, (floor.config, floor.weights), tmp_path / "floor", rung)
    here, _ = made(inside(ladder), sent, (floor.config, floor.weights), tmp_path / "floor", rung)
    assert there.digest == here.digest
    assert verdict.policy == ladder.rungs[rung - 1]
    assert verdict.outcome is Outcome.PROJECTED


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_from_the_floors_artefact_it_is_what_it_would_be_from_the_upload(
    ladder: Measure, sent: Upload, tmp_path: Path, rung: int
) -> None:
    """The directions that the floor takes out are among those of every rung, so that their order does not matter."""
    work = inside(replace(ladder, limits=replace(ladder.limits, base_names=None)))
    floor, _ = made(work, sent, (sent.config_bytes, sent.weights_bytes), tmp_path / "sent", 0)
    by_steps, _ = made(work, sent, (floor.config, floor.weights), tmp_path / "floor", rung)
    at_once, _ = made(work, sent, (sent.config_bytes, sent.weights_bytes), tmp_path / "sent", rung)
    stepwise, direct, whole = update(by_steps.weights), update(at_once.weights), update(sent.weights_bytes)
    assert stepwise.keys() == direct.keys()
    for name, expected in direct.items():
        assert float(torch.linalg.norm(stepwise[name] - expected)) <= ROUNDING * float(torch.linalg.norm(whole[name]))


def test_a_rung_that_does_not_exist_is_one_uploads_fault_and_ends_nobody(
    sandbox: Sandbox, sent: Upload, tmp_path: Path
) -> None:
    (tmp_path / "sent").write_bytes(sent.weights_bytes)
    with (tmp_path / "sent").open("rb") as weights, pytest.raises((Refused, IndexError)) as refused:
        sandbox(sent.config_bytes, weights, received_of(sent), Heard(), rung=9)
    assert not isinstance(refused.value, Refused) or refused.value.code is SCREENING_KILLED
    made(sandbox, sent, (sent.config_bytes, sent.weights_bytes), tmp_path / "sent", 0)
