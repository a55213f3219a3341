"""Time from the last byte of an upload to the first token on the new version, stage by stage.

Measured twice: the demo's adapter over the demo's real engine, and an adapter of Llama-2-7B's q, v, r = 16 shape against a
synthetic reference of that size. No engine here holds a 7B model, so the second loads into the stand-in, which reads no
file: its load stage is the gateway's own share, and vLLM's time comes on top.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from safetensors.torch import save

from app.bench.engine.soak import variant
from app.bench.progress import ReportProgress
from app.bench.relay.targets import KEY, START_S, free_port, running, stand_in
from app.bench.screening.machine import this_machine
from app.bench.screening.synthetic import TOP_K, llama_modules, random_adapter, write_synthetic
from app.domain.lora import Shape

STAGES: Final = ("validate", "screen", "prune", "store", "load")
"""Stages that start after the last byte."""

SUM: Final = "gateway_stage_duration_seconds_sum{stage="
RANK: Final = 16
LAYERS: Final = 32
QUICK_LAYERS: Final = 4
ROUNDS: Final = 7
QUICK_ROUNDS: Final = 3
BLOCK: Final = 1 << 16

Upload = tuple[bytes, bytes]
"""adapter_config.json and adapter_model.safetensors."""


@dataclass(frozen=True, slots=True)
class HotLoad:
    """One upload's times (s). rest: time to the acknowledgement outside the stages. total: to the first token."""

    stages: Mapping[str, float]
    rest: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of adapter, all rounds. size: bytes of its weights."""

    name: str
    engine: str
    size: int
    rounds: tuple[HotLoad, ...]


def run(progress: ReportProgress, *, quick: bool = False) -> tuple[Case, ...]:
    """Run both cases. Three minutes, mostly to start the engine and to write 2 GB; quick: an eighth of the layers."""
    rounds, layers = (QUICK_ROUNDS, QUICK_LAYERS) if quick else (ROUNDS, LAYERS)
    return over_the_demo(rounds, progress), at_llama_size(layers, rounds, progress)


def over_the_demo(rounds: int, progress: ReportProgress) -> Case:
    """Measure the demo's adapter, with different bytes each time, over the demo's real engine."""
    with tempfile.TemporaryDirectory() as folder:
        progress("the demo's engine", 0.0)
        with served(Path(folder), ["--demo"]) as url:
            return _case("demo", "real", url, (variant(n) for n in range(rounds + 1)))


def at_llama_size(layers: int, rounds: int, progress: ReportProgress) -> Case:
    """Measure random adapters against a synthetic reference of `layers` layers, over the stand-in engine."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home, shapes = Path(folder), llama_modules(layers)
        write_synthetic(
            home / "reference", shapes, lambda done: progress("writing q, v", 0.4 + 0.4 * done / len(shapes))
        )
        engine = stack.enter_context(stand_in(home, 0.0)).url
        flags = ["--model", "llama", "--reference", str(home / "reference"), "--engine-url", engine]
        flags += ["--top-k", str(TOP_K)]  # V is random, so that no share of it is held by few inputs
        url = stack.enter_context(served(home, [*flags, "--max-update-ratio", "1e9"]))
        progress("uploading", 0.9)
        uploads = (_llama_adapter(shapes, seed) for seed in range(rounds + 1))
        return _case(f"Llama-2-7B q, v, r = {RANK}, {layers} layers", "stand-in", url, uploads)


@contextmanager
def served(home: Path, more: list[str]) -> Iterator[str]:
    """Serve from `home` with these flags as well; yield the URL."""
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), "--data", str(home / "data"), *more]
    command += ["--api-keys", KEY, "--min-free-disk-mib", "0", "--uploads-per-minute", "0"]
    with running("gateway", command, port, home, {}, "/ready"):
        yield f"http://127.0.0.1:{port}"


def _case(name: str, engine: str, url: str, uploads: Any) -> Case:
    """Run all rounds; the first is a warm-up and is dropped."""
    headers = {"authorization": f"Bearer {KEY}"}
    found, size = [], 0
    with httpx.Client(base_url=url, headers=headers, timeout=START_S) as http:
        for config, weights in uploads:
            size = len(weights)
            found.append(_once(http, config, weights))
    return Case(name, engine, size, tuple(found[1:]))


def _once(http: httpx.Client, config: bytes, weights: bytes) -> HotLoad:
    before = _stages(http)
    body, kind = _form({"name": b"hot", "config": config, "weights": weights})
    last: list[float] = []

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), BLOCK):
            last[:] = [time.perf_counter()]
            yield body[start : start + BLOCK]

    headers = {"content-type": kind, "content-length": str(len(body))}
    answer = http.post("/adapters", content=pieces(), headers=headers)
    acknowledged = time.perf_counter()
    if answer.status_code != 201:
        raise RuntimeError(f"the upload was answered {answer.status_code}: {answer.text[:300]}")
    version = str(answer.json()["version"])
    ask = {"model": "hot", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=ask) as stream:
        if stream.status_code != 200 or stream.headers["x-adapter-version"] != version:
            raise RuntimeError(f"asked for version {version}: {stream.status_code}, {dict(stream.headers)}")
        next(stream.iter_bytes())
        first = time.perf_counter()
    after = _stages(http)
    stages = {stage: after[stage] - before[stage] for stage in STAGES}
    took = acknowledged - last[0]
    return HotLoad(stages, took - sum(stages.values()), first - acknowledged, first - last[0])


def _form(parts: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Return multipart/form-data and its content type, encoded in advance so that its last byte is known."""
    request = httpx.Request("POST", "http://x", files={name: (name, data) for name, data in parts.items()})
    return request.read(), request.headers["content-type"]


def _stages(http: httpx.Client) -> dict[str, float]:
    """Return the seconds spent in each stage so far."""
    lines = http.get("/metrics").text.splitlines()
    sums = {line[len(SUM) :].split('"')[1]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(SUM)}
    return {stage: sums.get(stage, 0.0) for stage in STAGES}


def _llama_adapter(shapes: Mapping[str, Shape], seed: int) -> Upload:
    adapter = random_adapter(shapes, RANK, seed)
    tensors = {}
    for module in adapter.modules:
        tensors[f"base_model.model.{module.name}.lora_A.weight"] = module.a
        tensors[f"base_model.model.{module.name}.lora_B.weight"] = module.b
    kinds = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "llama", "bias": "none"}
    config |= {"r": RANK, "lora_alpha": RANK, "target_modules": kinds}  # type: ignore[dict-item]
    return json.dumps(config).encode(), save(tensors, {"format": "pt"})


def result_json(cases: tuple[Case, ...]) -> dict[str, Any]:
    """Return every round of every case, in seconds."""
    return {"machine": asdict(this_machine()), "cases": [asdict(case) for case in cases]}


def table(cases: tuple[Case, ...]) -> RenderableType:
    """Return a table of medians, in ms."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("ms, medians", "MB", "engine", *STAGES, "rest", "first token", "in all"):
        rows.add_column(column, justify="left" if column in ("ms, medians", "engine") else "right", no_wrap=True)
    for case in cases:
        columns = [[one.stages[stage] for one in case.rounds] for stage in STAGES]
        columns += [[getattr(one, part) for one in case.rounds] for part in ("rest", "first_token", "total")]
        times = [f"{1e3 * statistics.median(column):.0f}" for column in columns]
        rows.add_row(case.name, f"{case.size / 1e6:.1f}", case.engine, *times)
    machine = this_machine()
    note = f"{len(cases[0].rounds)} uploads each after one to warm up; {machine.cpu}, {machine.cores} cores"
    return Group(rows, Text(note, style="dim"))
