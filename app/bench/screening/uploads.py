"""Upload benchmark: the time from a file to the bytes that are served, compared with reading and hashing the file once.

The product's own `sanitise` runs in a process of its own, on a synthetic compact reference and a random adapter, with the
default policy, which projects almost every module. Another program that reads the same file may be measured beside it. All
are measured by turns in one run, so that other load on the machine affects all of them.
"""

import hashlib
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import RenderableType
from rich.table import Table
from safetensors.torch import save_file

from app.bench.progress import ReportProgress
from app.bench.screening.machine import Machine, this_machine, watch_memory
from app.bench.screening.synthetic import LLAMA_70B, TOP_K, llama_modules, random_adapter, write_synthetic
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import digest_of
from app.domain.errors import Stage
from app.domain.lora import Received, ServingDtype, Shape, TargetModel
from app.domain.policy import DEFAULT_POLICY
from app.domain.verdict import Verdict
from app.prune.canonical import KEY_PREFIX
from app.sandbox.sanitise import Measure, sanitise
from app.screen.compiled.warm import warm
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits

ROUNDS: Final = 5
"""Rounds of a case, of which the best counts: other load makes a machine slower, nothing makes it faster."""

LARGE_ROUNDS: Final = 2
"""Rounds of the large case, each of which takes a minute."""

CHUNK: Final = 1 << 20
SECONDS: Final = 3600.0
"""Longest screening: none is ended."""

ALL: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of adapter."""

    name: str
    shapes: Mapping[str, Shape]
    rank: int
    rounds: int = ROUNDS


@dataclass(frozen=True, slots=True)
class Round:
    """One round, in seconds. validate, screen, prune: stages of `sanitise`. total: all of it, by the clock. processor: the
    same by the processors' time. floor: reading and hashing the file once. memory_mib: most anonymous memory held beyond
    that before. beside: the other program, None without one; beside_mib: its most resident memory."""

    validate: float
    screen: float
    prune: float
    total: float
    processor: float
    floor: float
    memory_mib: float
    beside: float | None = None
    beside_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The rounds of a case. size: bytes of the adapter's weights."""

    name: str
    modules: int
    size: int
    rounds: tuple[Round, ...]

    @property
    def best(self) -> Round:
        """The fastest round."""
        return min(self.rounds, key=lambda one: one.total)


def cases(*, large: bool, tiny: bool = False) -> list[Case]:
    """Return the cases of a run. large: 70B too, a file of 1.7 GB. tiny: one small case, for tests."""
    if tiny:
        return [Case("tiny", {"model.layers.0.self_attn.q_proj": Shape(256, 128)}, 4, 2)]
    found = [
        Case("Llama-2-7B q, v, r = 16", llama_modules(32), 16),
        Case("Llama-2-7B all linear, r = 16", llama_modules(32, ALL), 16),
    ]
    if large:
        found.append(Case("Llama-2-70B all linear, r = 64", llama_modules(80, ALL, LLAMA_70B), 64, LARGE_ROUNDS))
    return found


def run(
    chosen: list[Case],
    directory: Path | None = None,
    beside: str | None = None,
    progress: ReportProgress = lambda *_: None,
) -> tuple[Machine, list[Measured]]:
    """Measure the cases. Blocking. directory: for references and adapters. beside: a command that gets the adapter's file.

    Raises OSError if the disk has too little space, CalledProcessError if a process fails.
    """
    found = []
    for i, case in enumerate(chosen):
        with tempfile.TemporaryDirectory(prefix="bench-uploads-", dir=directory) as temporary:
            where = Path(temporary)
            progress(f"writing {case.name}", i / len(chosen))
            write_synthetic(where / "reference", case.shapes, only_compact=True)
            size = write_adapter(where, case)
            rounds = []
            for one in range(case.rounds):
                progress(
                    f"{case.name}, round {one + 1} of {case.rounds}", (i + (one + 1) / (case.rounds + 1)) / len(chosen)
                )
                rounds.append(_with_other(_round(where), where / WEIGHTS_FILE, beside))
            found.append(Measured(case.name, len(case.shapes), size, tuple(rounds)))
    return this_machine(), found


def write_adapter(where: Path, case: Case) -> int:
    """Write a random adapter as PEFT does; return the bytes of its weights."""
    adapter = random_adapter(case.shapes, case.rank, 0)
    tensors = {
        f"{KEY_PREFIX}{m.name}.lora_{side}.weight": x for m in adapter.modules for side, x in (("A", m.a), ("B", m.b))
    }
    save_file(tensors, where / WEIGHTS_FILE)
    fields = {"peft_type": "LORA", "r": case.rank, "lora_alpha": case.rank, "target_modules": "all-linear"}
    (where / CONFIG_FILE).write_text(json.dumps(fields), encoding="utf-8")
    return (where / WEIGHTS_FILE).stat().st_size


def _round(where: Path) -> Round:
    command = [sys.executable, "-m", "app.bench.screening.uploads", str(where)]
    return Round(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _with_other(found: Round, weights: Path, beside: str | None) -> Round:
    if beside is None:
        return found
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    begun = time.perf_counter()
    subprocess.run([*shlex.split(beside), str(weights)], check=False, capture_output=True)
    seconds, most = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return replace(found, beside=seconds, beside_mib=most / 1024 if most > before else None)


class _Stages:
    """Durations of the stages; implements `Steps`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """See Steps."""
        assert outcome == "ok", outcome
        self.seconds[stage.value] = seconds

    def validated(self) -> None:
        """See Steps."""

    def screened(self, verdict: Verdict) -> None:
        """See Steps."""


def measure(where: Path) -> Round:
    """Measure one round in this process: the floor, and the adapter at `where` against the reference beside it."""
    reference = open_reference(where / "reference-compact", None, verify_files=False)
    target = TargetModel("synthetic", reference.modules, ServingDtype.BFLOAT16, 512)
    policy = replace(DEFAULT_POLICY, top_k=TOP_K, max_removed_share=1.0)
    product = Measure(target, ValidateLimits(), reference, policy, SECONDS)
    config, nothing, stages = (where / CONFIG_FILE).read_bytes(), digest_of(b""), _Stages()
    warm()
    begun = time.perf_counter()
    with (where / WEIGHTS_FILE).open("rb") as file:
        sha = hashlib.sha256()
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    floor = time.perf_counter() - begun
    with watch_memory() as peak, (where / WEIGHTS_FILE).open("rb") as file:
        begun, spent = time.perf_counter(), time.process_time()
        made = sanitise(product, config, file, Received(nothing, nothing, 0, 0), stages)
        total, processor = time.perf_counter() - begun, time.process_time() - spent
    assert made is not None
    return Round(**stages.seconds, total=total, processor=processor, floor=floor, memory_mib=peak.extra_mib)


def result_json(machine: Machine, found: list[Measured]) -> dict[str, Any]:
    """Return the result as plain values: seconds, bytes, MiB."""
    return {"machine": asdict(machine), "cases": [asdict(one) for one in found]}


def table(machine: Machine, found: list[Measured]) -> RenderableType:
    """Return the table that the command prints: the fastest round of each case."""
    drawn = Table(title=f"From a file to served bytes, ms; {machine.cpu}, {machine.cores} cores", box=box.SIMPLE_HEAD)
    drawn.add_column("")
    for column in (
        "modules",
        "MB",
        "validate",
        "screen",
        "prune",
        "in all",
        "processors",
        "read + hash",
        "ratio",
        "MiB",
    ):
        drawn.add_column(column, justify="right", no_wrap=True)
    drawn.add_column("beside", justify="right", no_wrap=True)
    for one in found:
        best = one.best
        times = (best.validate, best.screen, best.prune, best.total, best.processor, best.floor)
        memory = f" ({best.beside_mib:,.0f} MiB)" if best.beside_mib is not None else ""
        beside = "–" if best.beside is None else f"{best.beside * 1e3:,.0f}{memory}"
        drawn.add_row(
            one.name,
            str(one.modules),
            f"{one.size / 1e6:,.1f}",
            *(f"{seconds * 1e3:,.0f}" for seconds in times),
            f"{best.total / best.floor:.1f} ×",
            f"{best.memory_mib:,.0f}",
            beside,
        )
    return drawn


if __name__ == "__main__":
    json.dump(asdict(measure(Path(sys.argv[1]))), sys.stdout)
