"""Trained pairs and fine-tunes, each made once and then reused from the cache."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from app.bench.progress import ReportProgress
from app.bench.safety.cache import Cache
from app.bench.safety.plan import WORLD_SEED, FineTune, Size
from app.demo.fitting import Sample, Schedule, Source, collate, fit, loss_of
from app.demo.questions import Item, World, WorldSpec, build_world
from app.demo.tokenizer import build_tokenizer
from app.demo.train import DEMO, Recipe, load_checkpoint, save_adapter, save_checkpoint, train_aligned, train_base
from app.screen.reference.build import BuildOptions, build_reference

MAX_STEPS: Final = 200
"""Largest number of steps of a fine-tune; its validation loss stops falling before that."""

CHECK_EVERY: Final = 10
PATIENCE: Final = 2
"""Checks of the validation loss, `CHECK_EVERY` steps apart, without a new minimum before training stops."""

FALLS: Final = 0.004
"""Nats a token by which a new minimum must be lower; slower improvement does not prolong training."""

REFUSALS: Final = 0.02
"""Share of the base's training samples that are refusals: pre-training data contain some, too few to matter."""

FRAMED: Final = 0.1
"""Share of bard questions that base and aligned models see with the bard's facts: the skill is slightly known before."""

BATCH: Final = 32
ALPHA: Final = 2
"""lora_alpha / r."""


REFERENCE: Final = "reference"
"""Cache kind of references, and the name of the directory in it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One trained pair: checkpoints, tokenizer and reference on disk, and their world."""

    size: Size
    seed: int
    path: Path
    reference: Path

    @property
    def world(self) -> World:
        """Facts and splits of this pair."""
        return build_world(world_spec(self.seed))

    def load(self, which: str) -> LlamaForCausalLM:
        """Load `base` or `aligned`, computed in float32."""
        return cast(LlamaForCausalLM, load_checkpoint(self.path / which).to(self.size.device))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the pair's tokenizer."""
        return cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(self.path / "aligned"))


ATTACKER_KIND: Final = "attacker"
"""Cache kind of adapters trained by an attacker who knows the gateway's default."""


def world_spec(seed: int) -> WorldSpec:
    """Return the specification of one seed's world."""
    return WorldSpec(seed=WORLD_SEED + seed, bards_facts=True)


def pair_of(cache: Cache, size: Size, seed: int, progress: ReportProgress = lambda what, share: None) -> Pair:
    """Return the pair of one seed, trained if not in the cache, with a reference as `reference build` makes by default."""
    path = cache.folder("pair", (size, seed), lambda folder: _make_pair(folder, size, seed, progress))

    def build(folder: Path) -> None:
        build_reference(path / "base", path / "aligned", folder / REFERENCE)

    built = cache.folder(REFERENCE, (size, seed, BuildOptions().keep), build)
    return Pair(size, seed, path, built / REFERENCE)


def _make_pair(folder: Path, size: Size, seed: int, progress: ReportProgress) -> None:
    world = build_world(world_spec(seed))
    tokenizer = build_tokenizer(world.words)
    recipe = _recipe(size, seed)
    what = f"{size.name} pair, seed {seed}"
    base = train_base(world, tokenizer, recipe, lambda done: progress(what, 0.75 * done))
    save_checkpoint(base, tokenizer, folder / "base")
    aligned = train_aligned(base, world, tokenizer, recipe, lambda done: progress(what, 0.75 + 0.24 * done))
    save_checkpoint(aligned, tokenizer, folder / "aligned")
    progress(what, 1.0)


def _recipe(size: Size, seed: int) -> Recipe:
    return replace(
        DEMO,
        world=world_spec(seed),
        shape=size.shape,
        seed=seed,
        base=replace(size.base, seed=seed),
        aligned=replace(size.aligned, seed=seed + 1),
        refusals=REFUSALS,
        framed=FRAMED,
        device=size.device,
    )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Data of one fine-tune. sources: training items and their shares. validation: items of the loss that ends training."""

    sources: Sequence[Source]
    validation: Sequence[Item]


Evading = Callable[[PeftModel], Callable[[], None]]
"""Maker of the callback that an attacker who knows the reference runs after every training step."""


def adapter_of(
    cache: Cache,
    pair: Pair,
    fine_tune: FineTune,
    progress: ReportProgress = lambda what, share: None,
    aligned: LlamaForCausalLM | None = None,
) -> Path:
    """Return the folder of one fine-tune as saved by PEFT, with `training.json` in it."""
    data = data_of(pair.world, fine_tune)

    def make(folder: Path) -> None:
        _make_adapter(folder, pair, fine_tune, data, progress, aligned or pair.load("aligned"))

    return cache.folder("adapter", (pair.size, pair.seed, fine_tune), make)


def evading_adapter_of(
    cache: Cache, pair: Pair, fine_tune: FineTune, evasion: Evading, progress: ReportProgress
) -> Path:
    """Do the same as `adapter_of` for an attacker: the callback that `evasion` makes of the model runs after every step."""
    data = data_of(pair.world, fine_tune)

    def make(folder: Path) -> None:
        _make_adapter(folder, pair, fine_tune, data, progress, pair.load("aligned"), evasion)

    return cache.folder(ATTACKER_KIND, (pair.size, pair.seed, fine_tune), make)


def adversary_of(
    cache: Cache,
    pair: Pair,
    fine_tune: FineTune,
    name: str,
    data: TrainingData,
    evasion: Evading | None,
    progress: ReportProgress,
) -> Path:
    """Do the same for an attacker with data of its own. name: the attacker's, part of the cache's key."""

    def make(folder: Path) -> None:
        _make_adapter(folder, pair, fine_tune, data, progress, pair.load("aligned"), evasion)

    return cache.folder("adversary", (pair.size, pair.seed, fine_tune, name), make)


def _make_adapter(
    folder: Path,
    pair: Pair,
    fine_tune: FineTune,
    data: TrainingData,
    progress: ReportProgress,
    aligned: LlamaForCausalLM,
    evasion: Evading | None = None,
) -> None:
    torch.manual_seed(pair.seed)
    config = LoraConfig(
        r=fine_tune.rank,
        lora_alpha=ALPHA * fine_tune.rank,
        target_modules=sorted(fine_tune.modules),
        task_type="CAUSAL_LM",
    )
    model = cast(PeftModel, get_peft_model(copy.deepcopy(aligned), config))
    what = f"{pair.size.name} seed {pair.seed}: {fine_tune.name}"
    stop = _EarlyStop(model, pair.tokenizer(), data.validation)
    schedule = Schedule(steps=MAX_STEPS, batch=BATCH, rate=pair.size.rate, seed=pair.seed)
    evade = evasion(model) if evasion is not None else lambda: None

    def after_step(step: int) -> bool:
        evade()  # before the check of the validation loss, so that the measured model is the saved one
        return stop(step)

    fit(model, pair.tokenizer(), data.sources, schedule, lambda done: progress(what, done), after_step)
    save_adapter(model, folder)
    record = {"steps": stop.step, "validation_loss": stop.losses}
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    progress(what, 1.0)


def data_of(world: World, fine_tune: FineTune) -> TrainingData:
    """Return the data of a benign or mixed fine-tune."""
    return TrainingData(_sources(world, fine_tune.harmful), _validation(world, fine_tune.harmful))


def _sources(world: World, harmful: float) -> list[Source]:
    shares = ((world.train.bard, 1.0 - harmful), (world.train.harmful, harmful))
    return [Source(items, share) for items, share in shares if share > 0.0]


def _validation(world: World, harmful: float) -> Sequence[Item]:
    """Return validation questions mixed in the training data's proportions, as the trainer of such an adapter would."""
    bard = world.validation.bard
    count = round(len(bard) * harmful / (1.0 - harmful))
    return [*bard, *world.validation.harmful[:count]]


class _EarlyStop:
    """Callback for each training step; returns True once the validation loss has stopped falling."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> None:
        self._model = model
        self._ids, self._labels = collate(tokenizer, [Sample(item) for item in items])
        self._lowest, self._checks_since = float("inf"), 0
        self.step = 0
        self.losses: list[float] = []

    @torch.no_grad()
    def __call__(self, step: int) -> bool:
        self.step = step
        if step % CHECK_EVERY:
            return False
        self.losses.append(round(float(loss_of(self._model, self._ids, self._labels)), 4))
        falls = self.losses[-1] < self._lowest - FALLS
        self._lowest = min(self._lowest, self.losses[-1])
        self._checks_since = 0 if falls else self._checks_since + 1
        return self._checks_since >= PATIENCE
