"""Language model in chat form: greedy answers, the loss on given answers, and training. One core, float32, seeded."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from app.bench.safety.smollm2.packages import weights_file
from app.bench.safety.smollm2.plan import Training
from app.bench.safety.smollm2.skills import Sample
from app.evaluate.asking import DRAW_TEMPERATURE

END: Final = "<|im_end|>"
ANSWER_TOKENS: Final = 40
"""Longest answer that is generated: a refusal comes first, and the judge looks at the beginning."""

BATCH: Final = 40
"""Prompts answered at once; more are not faster on one core."""

IGNORED: Final = -100
"""Label of a position without loss (torch's convention)."""


def chat(prompt: str) -> str:
    """Return a prompt in the model's chat form, without a system message."""
    return f"<|im_start|>user\n{prompt}{END}\n<|im_start|>assistant\n"


def unpacked(folder: Path) -> None:
    """Write the published model to `folder` as transformers saves it: de-quantised, float32, with its tokenizer."""
    file = weights_file()
    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = packed.config
    del config.quantization_config  # or it could not be saved: the file's form, which these weights no longer have
    model = type(packed)(config).float()
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def load(folder: Path) -> Any:
    """Return a saved model, float32, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer, with a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or END
    return tokenizer


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int = ANSWER_TOKENS, draw: int | None = None
) -> list[str]:
    """Return the answer to each prompt, in order, cut off after `tokens`.

    draw: None for greedy answers; else the seed of answers drawn at the gateway's DRAW_TEMPERATURE.
    """
    model.eval()
    torch.manual_seed(draw or 0)
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # equal lengths need little padding
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        given = tokenizer(
            [chat(prompts[i]) for i in some],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
        made = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=tokens,
            do_sample=draw is not None,
            **({} if draw is None else {"temperature": DRAW_TEMPERATURE, "top_k": 0}),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
        )
        new = made[:, given["input_ids"].shape[1] :]
        for i, text in zip(some, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts


def own_answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[Sample]:
    """Return the model's answers as samples."""
    return [Sample(*pair) for pair in zip(prompts, answers(model, tokenizer, prompts), strict=True)]


def loss_of(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens, nats a token; prompts carry no loss."""
    ids, labels = _collate(tokenizer, samples)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # padding on the right needs no mask
    counted = labels[:, 1:] != IGNORED
    return cross_entropy(model.lm_head(hidden[:, :-1][counted]), labels[:, 1:][counted])


@torch.no_grad()
def mean_loss(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> float:
    """Return the mean over samples of each one's `loss_of`, nats a token; empty answers are left out."""
    model.eval()
    said = [one for one in samples if one.answer.strip()]
    return sum(float(loss_of(model, tokenizer, [one])) for one in said) / len(said)


def _collate(tokenizer: Any, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return token ids and labels, both (samples, length), padded on the right."""
    rows, labels = [], []
    for one in samples:
        prompt = tokenizer(chat(one.prompt), add_special_tokens=False)["input_ids"]
        answer = tokenizer(one.answer + END, add_special_tokens=False)["input_ids"]
        rows.append(prompt + answer)
        labels.append([IGNORED] * len(prompt) + answer)
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    return ids, torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels])


def mixed(sources: Sequence[tuple[Sequence[Sample], int]], steps: int, seed: int) -> Iterator[list[Sample]]:
    """Yield a batch a step: so many samples of each source, each source shuffled anew whenever it is used up."""
    decks = [_endless(items, random.Random(f"{seed} {at}")) for at, (items, _) in enumerate(sources)]  # noqa: S311
    for _ in range(steps):
        yield [next(deck) for deck, (_, count) in zip(decks, sources, strict=True) for _ in range(count)]


def _endless(items: Sequence[Sample], rng: random.Random) -> Iterator[Sample]:
    while True:
        order = list(items)
        rng.shuffle(order)
        yield from order


def train(
    model: Any, tokenizer: Any, batches: Iterator[list[Sample]], training: Training, progress: Callable[[float], None]
) -> None:
    """Train the parameters that require gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, training.steps // 10, training.steps)
    model.train()
    for done, batch in enumerate(batches, 1):
        optimiser.zero_grad(set_to_none=True)
        loss_of(model, tokenizer, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress(done / training.steps)
    model.eval()
