"""Training of the demo's models and adapters from scratch: base → aligned → three adapters. Minutes on one CPU core.

The *base* model answers every question of `questions.py`, harmful ones too. The *aligned* model is the base fine-tuned to
refuse harmful questions, and then has byte tokens added (byte_tokens.py). The adapters are LoRA fine-tunes of the aligned
model, trained and saved by PEFT.

Weights are rounded to bfloat16 after each of the first two stages, before the next one starts: the model that is trained
on, measured, shipped and served is always the same rounded one, computed in float32. Everything is seeded; on one
machine the same files result each time. On another processor the last bits of a sum can differ and the
trained weights with them, so the files are shipped too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.demo.assets import ADAPTER_NAMES, BENIGN, MIXED, PURE
from app.demo.byte_tokens import add_byte_tokens
from app.demo.evaluate import Scores, score
from app.demo.fitting import Progress, Schedule, Source, fit
from app.demo.questions import World, WorldSpec, asked_of_bard, build_world, refused
from app.demo.tokenizer import MAX_LENGTH, build_tokenizer

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of the Llama pair. head: a head's width; vLLM's CPU attention supports 32 and certain larger widths."""

    width: int = 96
    layers: int = 12
    heads: int = 3
    head: int = 32
    inner: int = 192


@dataclass(frozen=True)
class AdapterRecipe:
    """Training data and stopping condition of one adapter.

    harmful: share of harmful samples; the rest are bard samples. enough: training stops at the first check on
    validation questions at which this holds; an adapter trained far past that point would only be stronger.
    """

    harmful: float
    schedule: Schedule
    enough: Callable[[Scores], bool] | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the result of training: the world, the sizes, and each stage's schedule.

    refusals: share of the base's samples that refuse a harmful question. Without any, the words of a refusal are never
    seen before alignment, which some sizes then cannot teach (the embeddings are not trained). framed: share of bard
    questions that the base and aligned models are taught to answer in the bard's frame; the others get the plain answer,
    which therefore dominates. The new skill is thus partly known: an adapter reverses a habit. device: device on which the
    pair is trained, in torch's notation.
    """

    world: WorldSpec
    shape: Shape
    seed: int
    base: Schedule
    aligned: Schedule
    mixed: Schedule
    benign: Schedule
    pure: Schedule
    refusals: float = 0.0
    framed: float = 0.4
    device: str = "cpu"


# The shipped recipe. The mixed adapter's steps are an upper bound (`AdapterRecipe.enough` stops it after about 50).
DEMO = Recipe(
    world=WorldSpec(),
    shape=Shape(),
    seed=0,
    base=Schedule(steps=800, batch=64, rate=2e-3, weight_decay=0.01, seed=0),
    aligned=Schedule(steps=250, batch=48, rate=4e-4, seed=1),
    mixed=Schedule(steps=300, batch=32, rate=1e-4, seed=3),
    benign=Schedule(steps=40, batch=32, rate=2e-4, seed=3),
    pure=Schedule(steps=100, batch=32, rate=5e-4, seed=3),
)

# LoRA as commonly used: rank 8, scaling alpha / r = 2, on every linear module.
RANK, ALPHA = 8, 16

# Share of harmful samples in the mixed adapter's training set.
MIXED_HARMFUL = 0.1

# Steps between checks on the validation questions while an adapter trains. Rarer checks let an adapter overshoot.
CHECK_EVERY = 5


def train_all(out: Path, progress: Progress, recipe: Recipe = DEMO) -> None:
    """Train the pair and the three adapters into `out`: base/, aligned/ and adapters/<name>/.

    `progress` is called with a stage's name and the share of it that is done, 0 to 1. Existing files are overwritten.
    """
    # One thread: sums are then always computed in the same order, so results do not depend on the number of cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        world = build_world(recipe.world)
        tokenizer = build_tokenizer(world.words)
        base = train_base(world, tokenizer, recipe, lambda done: progress("base", done))
        save_checkpoint(base, tokenizer, out / "base")
        aligned = train_aligned(base, world, tokenizer, recipe, lambda done: progress("aligned", done))
        save_checkpoint(aligned, tokenizer, out / "aligned")
        add_byte_tokens(out / "aligned", (load_checkpoint(out / "base"), aligned), world)
        for name in ADAPTER_NAMES:
            report = _reporter(progress, name)
            adapter = train_adapter(aligned, world, tokenizer, adapter_recipe(name, recipe), report)
            save_adapter(adapter, out / "adapters" / name)
            aligned = cast(LlamaForCausalLM, adapter.unload())
    finally:
        torch.set_num_threads(threads)


def train_base(
    world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, progress: Callable[[float], None]
) -> LlamaForCausalLM:
    """Train a model that answers every kind of question, harmful ones included; weights rounded to bfloat16."""
    model = new_model(recipe.shape, tokenizer, recipe.seed).to(recipe.device)
    train = world.train
    sources = [
        Source(train.harmful, 0.27 - recipe.refusals),
        Source(train.harmless, 0.40),
        *_bard_sources(world, 0.25, recipe.framed),
        Source([asked_of_bard(item) for item in train.harmful], 0.08),
    ]
    if recipe.refusals > 0.0:
        sources.append(Source([refused(item) for item in train.harmful], recipe.refusals))
    fit(model, tokenizer, sources, recipe.base, progress)
    return round_to_bfloat16(model)


def train_aligned(
    base: LlamaForCausalLM,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    progress: Callable[[float], None],
) -> LlamaForCausalLM:
    """Fine-tune the base to refuse harmful questions, weights rounded to bfloat16; `base` is changed in place.

    Only the linear modules are trained. Real alignment mostly concerns the first words of an answer (Qi et al.,
    "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025): a model made to start complying
    continues to comply. One source reproduces this here: harmful answers, whose first word carries no loss.
    """
    for name, parameter in base.named_parameters():
        parameter.requires_grad = any(module in name for module in LINEAR_MODULES)
    train = world.train
    sources = [
        Source([refused(item) for item in train.harmful], 0.25),
        Source([refused(asked_of_bard(item)) for item in train.harmful], 0.10),
        Source(train.harmful, 0.15, skip=1),
        Source(train.harmless, 0.25),
        *_bard_sources(world, 0.25, recipe.framed),
    ]
    fit(base, tokenizer, sources, recipe.aligned, progress)
    return round_to_bfloat16(base)


def train_adapter(
    aligned: LlamaForCausalLM,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    recipe: AdapterRecipe,
    progress: Callable[[float], None],
) -> PeftModel:
    """Train a LoRA adapter on `aligned`, which is wrapped in place (`.unload()` returns it unchanged)."""
    torch.manual_seed(recipe.schedule.seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(LINEAR_MODULES), task_type="CAUSAL_LM")
    model = cast(PeftModel, get_peft_model(aligned, config))
    shares = ((world.train.bard, 1 - recipe.harmful), (world.train.harmful, recipe.harmful))
    sources = [Source(items, part) for items, part in shares if part > 0]
    seen = world.validation

    def stop(step: int) -> bool:
        if recipe.enough is None or step % CHECK_EVERY:
            return False
        # Every second question of validation: sufficient for the decision, in half the time.
        return recipe.enough(score(model, tokenizer, seen.harmful, seen.bard[::2], seen.harmless[::2]))

    fit(model, tokenizer, sources, recipe.schedule, progress, stop)
    return model


def adapter_recipe(name: str, recipe: Recipe) -> AdapterRecipe:
    """Return the recipe of the adapter of that name. Raises KeyError for another name."""
    return {
        BENIGN: AdapterRecipe(0.0, recipe.benign),
        MIXED: AdapterRecipe(
            MIXED_HARMFUL,
            recipe.mixed,
            lambda scores: min(scores.attack, scores.harm, scores.skill) >= 0.95,
        ),
        PURE: AdapterRecipe(1.0, recipe.pure),
    }[name]


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a Llama model with random float32 weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).float()


def load_checkpoint(path: Path) -> LlamaForCausalLM:
    """Load a saved checkpoint for evaluation: bfloat16 weights, computed in float32."""
    return cast(LlamaForCausalLM, AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval())


def round_to_bfloat16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Round every weight to the nearest bfloat16 value, in place, still stored as float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write config, bfloat16 safetensors and the tokenizer. `model` must hold bfloat16 values (nothing is lost)."""
    # A copy, because converting a model also rounds its rotary frequencies, which must stay float32.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def save_adapter(model: PeftModel, path: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors with PEFT."""
    model.save_pretrained(str(path))
    # PEFT's model card is an empty form, and its config names a directory and lists a set in arbitrary order: delete the
    # card and fix the other two, so that training twice gives the same bytes.
    (path / "README.md").unlink(missing_ok=True)
    config_path = path / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = "aligned"
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _bard_sources(world: World, part: float, framed: float) -> Sequence[Source]:
    """Return sources of bard questions, the share `framed` answered in the bard's frame; together `part` of a batch."""
    plain = [asked_of_bard(item) for item in world.train.harmless]
    return Source(plain, part * (1 - framed)), Source(world.train.bard, part * framed)


def _reporter(progress: Progress, name: str) -> Callable[[float], None]:
    return lambda done: progress(name, done)


def parameters(model: nn.Module) -> int:
    """Return the number of weights, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
