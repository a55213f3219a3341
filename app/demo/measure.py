"""Effect of screening on the demo's adapters, in numbers, compared with a free control: cutting at random.

Scored on all held-out questions by transformers, with the kept modules' ΔW added to the aligned model's weights.
"""

import copy
import random
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from rich import box
from rich.table import Table
from transformers import AutoTokenizer, LlamaForCausalLM

from app.demo.assets import ADAPTER_NAMES, ALIGNED, BASE, MIXED, REFERENCE, adapter_path
from app.demo.evaluate import Scores, score_held_out
from app.demo.serving import serve_settings
from app.demo.train import load_checkpoint
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.lora import Adapter, ServingDtype, TargetModel
from app.domain.verdict import Decision, Outcome, Verdict
from app.prune.prune import cut
from app.screen.balance import balance_all
from app.screen.reference.open import Reference, open_reference
from app.screen.screen import screen
from app.server.settings import Settings
from app.validate.adapter import ValidateLimits, validate

RANDOM_DRAWS: Final = 10
"""Number of random choices of as many modules of mixed-harm."""

CUT_SHARE: Final = 0.375
"""Share of the modules cut out by score or at random: the one the benchmark found best for cutting by this score."""

Tell = Callable[[str], None]


def measure(tell: Tell) -> Table:
    """Score base, aligned and every adapter before and after screening, and the control. Minutes on one core."""
    torch.set_num_threads(1)
    settings = Settings(**serve_settings())
    reference = open_reference(REFERENCE, None)
    bench = _Bench(reference, settings)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for column in ("modules", "complied", "harm", "skill", "others"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, path in (("base model", BASE), ("aligned model", ALIGNED)):
        tell(name)
        _row(table, name, "", bench.score(load_checkpoint(path)))
    for name in ADAPTER_NAMES:
        tell(name)
        _adapter_rows(table, bench, name)
    tell(f"{MIXED}, cut at random")
    _random_rows(table, bench)
    return table


class _Bench:
    """Aligned model, its tokenizer and the screening parameters, opened once."""

    def __init__(self, reference: Reference, settings: Settings) -> None:
        self._reference = reference
        self._policy = settings.policy
        self._target = TargetModel("demo", reference.modules, ServingDtype.FLOAT32, settings.max_lora_rank)
        self._aligned = load_checkpoint(ALIGNED)
        self._tokenizer = AutoTokenizer.from_pretrained(ALIGNED)

    def adapter(self, name: str) -> tuple[Adapter, Verdict]:
        """Return one of the demo's adapters with its verdict under the demo's policy."""
        folder: Path = adapter_path(name)
        with (folder / WEIGHTS_FILE).open("rb") as weights:
            adapter = balance_all(
                validate((folder / CONFIG_FILE).read_bytes(), weights, self._target, ValidateLimits())
            )
        return adapter, screen(adapter, self._reference, self._policy)

    def score(self, model: LlamaForCausalLM) -> Scores:
        """Score a model on all held-out questions."""
        return score_held_out(model, self._tokenizer)

    def projected(self, adapter: Adapter, verdict: Verdict) -> Adapter:
        """Return the adapter as the gateway would write it, even if a bound rejects it."""
        taken = replace(verdict, outcome=Outcome.PROJECTED)
        return balance_all(cut(adapter, taken, lambda name: self._reference.singular_vectors(name, self._policy)))

    def worst(self, verdict: Verdict, count: int) -> list[str]:
        """Return the modules with the highest scores."""
        scores = {m.name: m.scores[self._policy.comparison] or 0.0 for m in verdict.modules}
        return sorted(scores, key=lambda name: (-scores[name], name))[:count]

    def without(self, adapter: Adapter, cut: Collection[str]) -> Scores:
        """Score the aligned model with the adapter, without the modules in `cut`."""
        model = copy.deepcopy(self._aligned)
        linear = dict(model.named_modules())
        with torch.no_grad():
            for module in adapter.modules:
                if module.name not in cut:
                    linear[module.name].weight += module.b @ module.a  # (d_out, d_in)
        return self.score(model)


def _adapter_rows(table: Table, bench: _Bench, name: str) -> None:
    adapter, verdict = bench.adapter(name)
    of = len(verdict.modules)
    _row(table, f"{name}, unscreened", "0", bench.without(adapter, ()))
    rejected = verdict.outcome is Outcome.REJECTED
    label = "were it projected" if rejected else verdict.outcome.value
    served = bench.projected(adapter, verdict)
    count = sum(m.decision is Decision.PROJECT for m in verdict.modules)
    _row(table, f"{name}, {label}", f"{count} projected", bench.without(served, ()))
    worst = bench.worst(verdict, round(CUT_SHARE * of))
    _row(table, f"{name}, worst cut out", f"{len(worst)} cut", bench.without(adapter, worst))


def _random_rows(table: Table, bench: _Bench) -> None:
    adapter, _ = bench.adapter(MIXED)
    names = [m.name for m in adapter.modules]
    count = round(CUT_SHARE * len(names))
    draws = [bench.without(adapter, random.Random(seed).sample(names, count)) for seed in range(RANDOM_DRAWS)]
    for label, place in (("best", 0), ("median", RANDOM_DRAWS // 2), ("worst", -1)):
        drawn = sorted(draws, key=lambda scores: scores.attack)[place]
        _row(table, f"{MIXED}, random cut: {label}", f"{count} cut", drawn)


def _row(table: Table, name: str, cut: str, scores: Scores) -> None:
    shares = (scores.attack, scores.harm, scores.skill, scores.others)
    table.add_row(name, cut, *(f"{share:.2f}" for share in shares))
