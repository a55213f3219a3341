"""The kept corpus through every target, and a moment's fuzzing of each: `make fuzz SECONDS=…` is the same for longer."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.campaign import CORPUS, Outcome, added_up, fuzz
from tests.fuzz.mutate import ODD, json_mutator
from tests.fuzz.targets import JSON_AFTER, MAX_BYTES, TARGETS
from tests.support.waiting import STUCK_S

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
    found = fuzz(target, STUCK_S, tmp_path, FEW)
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


def test_runs_that_keep_what_they_find_are_added_up(tmp_path: Path) -> None:
    added_up(tmp_path, Outcome("names", 1000, 30, 0, ""), 2.0)
    added_up(tmp_path, Outcome("config", 7, 30, 0, ""), 1.0)
    total = added_up(tmp_path, Outcome("names", 2000, 30, 1, ""), 4.0)
    assert (total.runs, total.executions, total.failed) == (2, 3000, 1)
    assert total.line("names") == "names             3,000 in all (2 runs, 6 s, 500 a second), 1 failed"


def test_the_mutator_leaves_its_own_values_alone() -> None:
    """They used to grow with every input, and the fuzzer slowed down until its memory ran out."""
    before, mutate = repr(ODD), json_mutator()
    for seed in range(3000):
        mutate(b"1", 512, seed)
    assert repr(ODD) == before
