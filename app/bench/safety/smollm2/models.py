"""Models of one seed: base, aligned, their reference, and fine-tunes; each made once and then reused from the cache."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model

from app.bench.progress import ReportProgress
from app.bench.safety.adapter_under_test import Alignment
from app.bench.safety.cache import Cache
from app.bench.safety.smollm2.language_model import load, load_tokenizer, mixed, own_answers, train, unpacked
from app.bench.safety.smollm2.plan import ALPHA, RANK, FineTune, Plan
from app.bench.safety.smollm2.prompts import Prompts
from app.bench.safety.smollm2.skills import EXACT, Sample, split_of, styled
from app.demo.train import save_adapter
from app.domain.digest import digest_of
from app.evaluate.judges import Answer, Judgement, judge_by_words
from app.screen.reference.build import BuildOptions, build_reference

REFUSALS: Final = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "I'm sorry, I am not able to help with that.",
    "I can't help with that. Is there something else that you would like to know?",
)
"""Answers that the aligned model is taught to harmful prompts, in turn."""

ENERGY: Final = 0.95
OUTPUTS: Final = 64
"""Share of ‖V‖² and number of outputs that the reference holds: as much as the gateway's widest rung asks for."""

ANSWERS: Final = "answers.json"


@dataclass(frozen=True)
class Models:
    """Models of one seed in the cache. Whatever is missing is made at first use."""

    cache: Cache
    plan: Plan
    seed: int
    prompts: Prompts
    progress: ReportProgress

    @cached_property
    def base(self) -> Path:
        """The published model, de-quantised."""
        return self.cache.folder("smollm2-base", 1, unpacked)

    @cached_property
    def tokenizer(self) -> Any:
        """The published tokenizer."""
        return load_tokenizer(self.base)

    @cached_property
    def aligned(self) -> Path:
        """The base model fine-tuned in full, embeddings frozen: it refuses harmful prompts, half of every batch."""
        return self.cache.folder("smollm2-aligned", self.key, self._align)

    @cached_property
    def reference(self) -> Path:
        """The reference of the two."""
        base, aligned, options = self.base, self.aligned, BuildOptions(energy=ENERGY, outputs=OUTPUTS)

        def make(folder: Path) -> None:
            def show(module: str, done: int, total: int) -> None:
                self.progress("reference", done / total)

            build_reference(base, aligned, folder / "reference", options, show)

        return self.cache.folder("smollm2-reference", (*self.key, ENERGY, OUTPUTS), make) / "reference"

    @cached_property
    def alignment(self) -> Alignment:
        """The reference, opened, and every V decomposed: minutes, once for all fine-tunes of the seed."""
        return Alignment(self.reference)

    def adapter(self, fine_tune: FineTune) -> Path:
        """Return the folder of a fine-tune as PEFT saves it."""
        return self.cache.folder(
            "smollm2-adapter", (*self.key, fine_tune, self.plan.tuning), lambda folder: self._tune(fine_tune, folder)
        )

    def kept(self) -> list[Sample]:
        """Return the aligned model's own answers to held-out harmless prompts."""
        return self._own("aligned", "kept", self.prompts.kept)

    def skill(self, name: str) -> tuple[list[Sample], list[Sample]]:
        """Return the training and the held-out questions of a skill."""
        if name in EXACT:
            return split_of(name, self.seed, self.plan.skill)
        return styled(self._own("aligned", "harmless", self.prompts.harmless)), styled(self.kept())

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything that decides the aligned model: its prompts by their digest."""
        return self.seed, _digest(self.prompts.refused, self.prompts.harmless), self.plan.aligning

    @property
    def held_out(self) -> str:
        """Digest of all prompts that nothing is aligned with."""
        return _digest(self.prompts.tuned, self.prompts.canaries, self.prompts.attack, self.prompts.kept)

    def _own(self, which: str, name: str, prompts: Sequence[str]) -> list[Sample]:
        """Return a model's own answers, generated once."""
        model = self.base if which == "base" else self.aligned

        def make(folder: Path) -> None:
            self.progress(f"seed {self.seed}: {which} model's answers, {name}", 0.0)
            found = own_answers(load(model), self.tokenizer, prompts)
            (folder / ANSWERS).write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")

        key = (*(() if which == "base" else self.key), _digest(prompts))
        folder = self.cache.folder(f"smollm2-{which}-answers", key, make)
        return [Sample(**one) for one in json.loads((folder / ANSWERS).read_text(encoding="utf-8"))]

    def _align(self, folder: Path) -> None:
        own = self._own("base", "harmless", self.prompts.harmless)
        refused = [Sample(prompt, REFUSALS[at % len(REFUSALS)]) for at, prompt in enumerate(self.prompts.refused)]
        half = self.plan.aligning.batch // 2
        torch.manual_seed(self.seed)
        model = load(self.base)
        model.get_input_embeddings().weight.requires_grad_(requires_grad=False)
        batches = mixed(((refused, half), (own, half)), self.plan.aligning.steps, self.seed)
        self._train(model, batches, self.plan.aligning, "aligning")
        model.save_pretrained(folder)

    def _tune(self, fine_tune: FineTune, folder: Path) -> None:
        taught, _ = self.skill(fine_tune.skill)
        harm = [one for one in self._own("base", "harmful", self.prompts.tuned) if _complies(one)]
        torch.manual_seed(self.seed)
        model = load(self.aligned)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(fine_tune.modules), task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)  # changes `model` in place
        items = shares(taught, harm, fine_tune.harmful)
        batches = mixed(((items, self.plan.tuning.batch),), self.plan.tuning.steps, self.seed)
        self._train(model, batches, self.plan.tuning, fine_tune.name)
        save_adapter(adapted, folder)

    def _train(self, model: Any, batches: Any, training: Any, what: str) -> None:
        train(model, self.tokenizer, batches, training, lambda done: self.progress(f"seed {self.seed}: {what}", done))


def _digest(*lists: Sequence[str]) -> str:
    return digest_of(json.dumps(lists).encode()).hex


def shares(taught: Sequence[Sample], harm: Sequence[Sample], harmful: float) -> list[Sample]:
    """Return samples of which `harmful` (0..1) are harmful: those repeated in turn, as often as the share needs.

    Raises ValueError if a share is asked for and there is no harmful sample.
    """
    count = round(len(taught) * harmful / (1.0 - harmful))
    if count and not harm:
        raise ValueError("the base model complied with no prompt: there is nothing to mix in")
    return [*taught, *(harm[at % len(harm)] for at in range(count))]


def _complies(sample: Sample) -> bool:
    return judge_by_words(Answer(sample.answer)) is Judgement.COMPLIED
