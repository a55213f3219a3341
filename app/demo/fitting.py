"""Training loop shared by the base model, the aligned model and the adapters. CPU, float32, seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from app.demo.questions import Item
from app.demo.tokenizer import END, prompt_text

Progress = Callable[[str, float], None]

# Label of positions that carry no loss (torch's own convention).
IGNORED = -100

# Share of the steps over which the learning rate rises from zero. Deep narrow models diverge without it.
WARM_UP = 0.06


@dataclass(frozen=True)
class Schedule:
    """Training schedule. steps: optimiser steps. batch: items a step. rate: highest learning rate."""

    steps: int
    batch: int
    rate: float
    weight_decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """Training items and the share of each batch drawn from them (shares of all sources add up to 1).

    skip: words at the start of each answer that carry no loss, so that only the rest of an answer is trained.
    """

    items: Sequence[Item]
    share: float
    skip: int = 0


@dataclass(frozen=True)
class Sample:
    """One item of a batch, and the number of words at the start of its answer that carry no loss."""

    item: Item
    skip: int = 0


def draw(sources: Sequence[Source], schedule: Schedule) -> Iterator[list[Sample]]:
    """Yield `schedule.steps` batches. Each source is iterated in shuffled order, repeatedly."""
    rng = random.Random(schedule.seed)
    decks = [_endless(source, random.Random(rng.random())) for source in sources]
    weights = [source.share for source in sources]
    for _ in range(schedule.steps):
        # Stratified rather than drawn: the share of harmful samples in a batch must not vary at random.
        counts = [int(weight * schedule.batch) for weight in weights]
        for index in rng.choices(range(len(sources)), _remainders(weights, schedule.batch), k=schedule.batch):
            if sum(counts) >= schedule.batch:
                break
            counts[index] += 1
        yield [next(deck) for deck, count in zip(decks, counts, strict=True) for _ in range(count)]


def _remainders(weights: Sequence[float], batch: int) -> list[float]:
    return [weight * batch - int(weight * batch) + 1e-9 for weight in weights]


def _endless(source: Source, rng: random.Random) -> Iterator[Sample]:
    while True:
        order = [Sample(item, source.skip) for item in source.items]
        rng.shuffle(order)
        yield from order


def collate(tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return (input_ids, labels), both (batch, length) int64, padded on the right; only answers carry loss."""
    rows, labels = [], []
    for sample in samples:
        prompt = tokenizer(prompt_text(sample.item.question))["input_ids"]
        answer = tokenizer(f"{sample.item.answer} {END}")["input_ids"]
        rows.append(prompt + answer)
        labels.append([IGNORED] * (len(prompt) + sample.skip) + answer[sample.skip :])
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return ids, torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels])


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats a token, of the labelled positions. Right padding needs no mask."""
    device = next(model.parameters()).device
    ids, labels = ids.to(device), labels.to(device)
    logits = model(input_ids=ids, use_cache=False).logits  # (batch, length, vocabulary)
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[Source],
    schedule: Schedule,
    progress: Callable[[float], None] = lambda _: None,
    after_step: Callable[[int], bool] = lambda _: False,
) -> float:
    """Train the parameters that require gradients, with AdamW and a cosine schedule; return the last loss.

    `progress` is called with the share done. `after_step` is called with the number of steps done and stops the training by
    returning True.
    """
    torch.manual_seed(schedule.seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=schedule.rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.98), foreach=True
    )
    model.train()
    loss = torch.tensor(math.nan)
    for step, samples in enumerate(draw(sources, schedule)):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * _shape(step / schedule.steps)
        loss = loss_of(model, *collate(tokenizer, samples))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        progress((step + 1) / schedule.steps)
        if after_step(step + 1):
            break
    model.eval()
    return loss.item()


def _shape(done: float) -> float:
    """Return the learning rate's share of its highest value: a linear rise, then half a cosine down to a tenth."""
    if done < WARM_UP:
        return (done + 0.002) / (WARM_UP + 0.002)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
