"""Fuzz every parser for a chosen time and say what came of it: `python -m tests.fuzz.campaign --seconds 60 [TARGET …]`.

Each run starts from the corpus in the repository; what it finds is kept in `--keep` (default: nowhere). What breaks
an invariant is written there too, and the exit status is 1. With the same `--keep` again a campaign is continued: it starts
from what was found so far, and executions are added up.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = Path(__file__).parent / "corpus"

HANG_SECONDS: Final = 120
"""By the clock: the longest one input may take before libFuzzer calls it a hang. Slow ones: `one.INPUT_SECONDS`."""

MEMORY_MIB: Final = 1024
"""The most memory one campaign may come to hold; it starts with about 50."""

TOTALS: Final = "executions.json"
"""In the directory of what is kept: executions of all runs there, by target."""

_RUNS = re.compile(rb"stat::number_of_executed_units:\s+([0-9]+)")
_COVERED = re.compile(rb"cov: ([0-9]+)")


@dataclass(frozen=True)
class Outcome:
    """One target's campaign. edges: branches of the code under test that were reached."""

    target: str
    executions: int
    edges: int
    status: int
    output: str

    @property
    def line(self) -> str:
        """For a person."""
        verdict = "no crash, no error outside the table" if self.status == 0 else f"FAILED (status {self.status})"
        return f"{self.target:10} {self.executions:>12,} executions  {self.edges:>4} edges  {verdict}"


@dataclass
class Total:
    """What the runs of one target in one `--keep` directory come to."""

    runs: int = 0
    executions: int = 0
    seconds: float = 0.0
    failed: int = 0

    def add(self, found: Outcome, seconds: float) -> None:
        """One more run."""
        self.runs += 1
        self.executions += found.executions
        self.seconds += seconds
        self.failed += found.status != 0

    def line(self, target: str) -> str:
        """For a person."""
        rate = self.executions / self.seconds if self.seconds else 0.0
        ran = f"{self.runs} run{'s' * (self.runs > 1)}, {self.seconds:,.0f} s, {rate:,.0f} a second"
        return f"{target:10} {self.executions:>12,} in all ({ran}), {self.failed} failed"


def added_up(keep: Path, found: Outcome, seconds: float) -> Total:
    """Add one run to what was run before in `keep`, and write it down."""
    book = keep / TOTALS
    totals = {name: Total(**total) for name, total in json.loads(book.read_text()).items()} if book.exists() else {}
    total = totals.setdefault(found.target, Total())
    total.add(found, seconds)
    fresh = book.with_suffix(".new")
    fresh.write_text(json.dumps({name: asdict(one) for name, one in totals.items()}, indent=1))
    fresh.replace(book)
    return total


def fuzz(target: str, seconds: float, keep: Path, runs: int = 0) -> Outcome:
    """Run one target in a process of its own. runs: stop after so many executions (0: only by time)."""
    keep.mkdir(parents=True, exist_ok=True)
    flags = [
        *(f"-max_total_time={max(1, round(seconds))}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"),
        "-reload=0",  # nobody else adds to the corpus meanwhile
        *("-print_final_stats=1", f"-artifact_prefix={keep}/"),
        *((f"-runs={runs}",) if runs else ()),
    ]
    # Forked from a shell: the most memory a process ever held stays with it over exec, and libFuzzer reads it as ours, so
    # of a large parent's child it would say that it is out of memory.
    command = [
        "sh",
        "-c",
        '"$@"; exit $?',
        "sh",
        sys.executable,
        "-m",
        "tests.fuzz.one",
        target,
        *flags,
        str(keep),
        str(CORPUS / target),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    counts, covered = _RUNS.findall(done.stdout), _COVERED.findall(done.stdout)
    executions, edges = int(counts[-1]) if counts else 0, int(covered[-1]) if covered else 0
    return Outcome(target, executions, edges, done.returncode, done.stdout.decode(errors="replace")[-4000:])


def main(args: Sequence[str] | None = None) -> int:
    """Run and report; 1 when anything broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--runs", type=int, default=0, help="stop a target after so many executions")
    parser.add_argument("--keep", type=Path, help="directory for what is found")
    asked = parser.parse_args(args)
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"{sorted(unknown)}: choose from {sorted(TARGETS)}")
    failed = False
    with tempfile.TemporaryDirectory() as nowhere:
        for target in asked.targets or TARGETS:
            keep, began = asked.keep or Path(nowhere), time.monotonic()
            found = fuzz(target, asked.seconds, keep / target, asked.runs)
            print(found.line, flush=True)
            total = added_up(keep, found, time.monotonic() - began)
            if asked.keep is not None:
                print(total.line(target), flush=True)
            if found.status != 0:
                failed = True
                print(found.output, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
