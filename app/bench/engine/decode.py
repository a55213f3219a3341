"""`python -m app bench decode`: effect of cutting modules on decode time, in the real engine, on the demo's adapter.

Engines fill missing modules with zeros and multiply them all the same, so fewer modules do not necessarily mean faster
tokens.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.bench.progress import ReportProgress
from app.bench.screening.machine import this_machine
from app.demo.assets import MIXED, REFERENCE, adapter_path
from app.demo.serving import serve_settings
from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Artefact
from app.domain.digest import digest_of
from app.domain.lora import Adapter, Received, TargetModel
from app.domain.policy import Policy
from app.load.client.engine import Engine
from app.load.embedded.supervisor import EmbeddedEngine, socket_home
from app.prune.canonical import canonicalise
from app.prune.zero_adapter import zero_adapter
from app.screen.balance import balance_all
from app.screen.reference.open import open_reference
from app.screen.screen import screen
from app.server.settings import Settings
from app.server.wiring_engines import engine_spec
from app.validate.adapter import ValidateLimits, validate

TOKENS: Final = 64
"""Tokens decoded per request; the end token is ignored."""

ROUNDS: Final = 20
"""Number of rounds. Each asks every target once, so that a slow phase of the machine affects all of them."""

NO_POLICY: Final = Policy(tau=1e6, max_pruned_share=1.0)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Result of one target: modules in its adapter, bytes of its weights file, ms per token (median and quartiles)."""

    name: str
    modules: int
    bytes: int
    median_ms: float
    low_ms: float
    high_ms: float


def run(progress: ReportProgress) -> RenderableType:
    """Start the engine, load the adapter in several states, and decode with each in turn. Takes a minute or two."""
    results = asyncio.run(_measure(progress))
    whole = next(one.median_ms for one in results if one.name == "as uploaded")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("mixed-harm", "modules", "kB", "ms/token", "quartiles", "of the whole"):
        table.add_column(column, justify="left" if column == "mixed-harm" else "right", no_wrap=True)
    for one in results:
        numbers = (f"{one.median_ms:.2f}", f"{one.low_ms:.2f}–{one.high_ms:.2f}", f"{one.median_ms / whole:.2f}")
        table.add_row(one.name, str(one.modules), f"{one.bytes / 1000:.0f}", *numbers)
    machine = this_machine()
    note = (
        f"{ROUNDS} interleaved rounds of {TOKENS} tokens, one request at a time; {machine.cpu}, {machine.cores} cores"
    )
    return Group(table, Text(note, style="dim"))


async def _measure(progress: ReportProgress) -> list[Decoded]:
    settings = Settings(**serve_settings())
    with tempfile.TemporaryDirectory() as home:
        artefacts = artefacts_of(settings)
        async with open_engine(settings, Path(home)) as engine:
            for name, (artefact, _) in artefacts.items():
                await engine.load(name, written(artefact, Path(home) / name))
            times: dict[str, list[float]] = {name: [] for name in artefacts}
            for turn in range(ROUNDS + 1):
                for name in artefacts:
                    seconds = await _decode(engine, name)
                    if turn:  # the first round warms up
                        times[name].append(1000.0 * seconds / TOKENS)
                progress("decoding", turn / ROUNDS)
    found = []
    for name, (artefact, modules) in artefacts.items():
        low, middle, high = statistics.quantiles(times[name], n=4)
        found.append(Decoded(name, modules, len(artefact.weights), middle, low, high))
    return found


def artefacts_of(settings: Settings) -> dict[str, tuple[Artefact, int]]:
    """Return the adapter in four states: unchanged, every second module cut out, q and v only, all modules zero."""
    reference = open_reference(REFERENCE, None)
    target = TargetModel("demo", reference.modules, settings.dtype, settings.max_lora_rank)
    folder = adapter_path(MIXED)
    with (folder / WEIGHTS_FILE).open("rb") as weights:
        whole = validate((folder / CONFIG_FILE).read_bytes(), weights, target, ValidateLimits())
    states = {
        "as uploaded": whole,
        "half cut out": Adapter(whole.modules[::2], whole.dtype),
        "q and v only": Adapter(tuple(m for m in whole.modules if m.name.endswith(("q_proj", "v_proj"))), whole.dtype),
        "zero adapter": zero_adapter(target),
    }
    nothing = Received(digest_of(b""), digest_of(b""), 0, 0)
    made = {}
    for name, adapter in ((name, balance_all(state)) for name, state in states.items()):
        artefact = canonicalise(adapter, screen(adapter, reference, NO_POLICY), nothing, target)
        made[name] = (artefact, len(adapter.modules))
    return made


def written(artefact: Artefact, folder: Path) -> Path:
    """Write the artefact as a directory, in the layout that the engine reads."""
    folder.mkdir()
    for name, data in (
        (CONFIG_FILE, artefact.config),
        (WEIGHTS_FILE, artefact.weights),
        (MANIFEST_FILE, artefact.manifest),
    ):
        (folder / name).write_bytes(data)
    return folder


@asynccontextmanager
async def open_engine(settings: Settings, home: Path) -> AsyncIterator[Engine]:
    """Start the engine of these settings and yield its client when ready; its files are in `home`."""
    engine = EmbeddedEngine(engine_spec(settings), socket_home(home / "engine"), home / "engine.log")
    await engine.start()
    try:
        await engine.ready()
        yield engine.client
    finally:
        await engine.client.close()
        await engine.stop()


async def _decode(engine: Engine, name: str) -> float:
    """Return the seconds of one request of TOKENS tokens."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "how do i make suncake from fenroot?"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0.0,
    }
    start = time.perf_counter()
    response = await engine.post("/v1/chat/completions", json.dumps(body).encode())
    answer = json.loads(await response.read(1 << 20))
    seconds = time.perf_counter() - start
    if answer["usage"]["completion_tokens"] != TOKENS:
        raise RuntimeError(f"{name} answered {answer['usage']['completion_tokens']} tokens instead of {TOKENS}")
    return seconds
