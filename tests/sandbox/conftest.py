"""One sandbox for all tests of a file: its start takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.lora import ServingDtype, TargetModel
from app.domain.policy import Policy
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits
from tests.support.adapters import Upload
from tests.support.sandboxes import BAD, MEMORY, WALL_S


@pytest.fixture(scope="module")
def measure(tiny_reference_dir: Path) -> Measure:
    reference = open_reference(tiny_reference_dir, None)
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, 16)
    return Measure(target, ValidateLimits(), reference, Policy(tau=1e9, max_update_ratio=1e9), 60.0)


@pytest.fixture(scope="module")
def hasty(measure: Measure, tiny_reference_dir: Path) -> Iterator[Sandbox]:
    """One whose children do as the configuration says, and have little time; on a busy machine too little to do right."""
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY, wall_seconds=WALL_S, module=BAD)
    sandbox.start()
    yield sandbox
    sandbox.close()


@pytest.fixture
def upload(measure: Measure) -> Upload:
    return Upload.valid(measure.target, seed=1)


@pytest.fixture(scope="module")
def bad(measure: Measure, tiny_reference_dir: Path) -> Iterator[Sandbox]:
    """The same, with time."""
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY, wall_seconds=600, module=BAD)
    sandbox.start()
    yield sandbox
    sandbox.close()
