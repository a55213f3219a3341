"""The kept corpus through every target, and a moment's fuzzing of each: `make fuzz SECONDS=…` is the same for longer."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.campaign import CORPUS, fuzz
from tests.fuzz.mutate import json_mutator
from tests.fuzz.targets import JSON_AFTER, MAX_BYTES, TARGETS

FEW = 3000
"""Executions in a test run: one to three seconds a target, most of it starting up."""


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_before_is_still_held(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert len(inputs) >= 3
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.skipif(sys.platform != "linux", reason="Atheris is installed on Linux only")
def test_a_moments_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    found = fuzz(target, 20, tmp_path, FEW)
    assert found.status == 0, found.output
    assert found.executions >= FEW
    assert found.edges > 20


@pytest.mark.parametrize("target", JSON_AFTER)
def test_the_mutator_changes_values_and_keeps_to_the_length(target: str) -> None:
    mutate, start = json_mutator(JSON_AFTER[target]), max((CORPUS / target).iterdir(), key=lambda p: p.stat().st_size)
    made = [mutate(start.read_bytes(), MAX_BYTES[target], seed) for seed in range(300)]
    assert len(set(made)) > 250
    assert all(len(one) <= MAX_BYTES[target] for one in made)
    for one in made:
        TARGETS[target](one)
