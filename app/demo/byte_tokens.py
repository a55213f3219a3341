"""Rows of the byte tokens, added to the trained aligned model: it can then write any text that a grammar asks for.

Engines follow a grammar (JSON, a schema, a regular expression) by forbidding every token that does not fit. The domain's
words cannot write a brace, so after training the served model gets a token for each byte. Nothing that was there changes:
the words' rows stay as they are, bit for bit, and the new rows are made so that two things hold.

- Without a grammar a byte token is never the likeliest, and hardly ever drawn. Its output row is fitted to stay far below
  the words, on states that the base and the aligned model have in answers, in refusals and after words in no order.
- After a byte token the grammar leads, and the model ends as soon as it may. The input rows are so long (READ_NORM) that
  the last state is nearly the row itself, whatever came before, and the output rows are fitted to give chosen logits there
  (WRITTEN): the end of the answer comes first, then what closes a string, an object or a list, then the rest.

A free string is thus empty, and so is a free object or list; what a schema demands is written. Output rows are separate
from input rows (untied), because the two sides are asked for different things. The base model, which is never served, has
no such rows: a reference leaves a head out that only one of a pair has.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters, digits

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import softplus
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from app.demo.questions import Item, World
from app.demo.tokenizer import BYTE_TOKENS, END, build_tokenizer, prompt_text
from app.demo.vocabulary import REFUSAL

# Length of an input row: far longer than what the layers add to it.
READ_NORM = 1000.0

# Share of the direction in which the model ends its answer, in the input rows; the rest is one in which states never lie.
ENDING = 0.8

# Nats by which a byte token stays below all words together, as far as it can.
BELOW = 14.0

# Weights in the fit of an output row: of its length, against overfitting to the states seen; and of the logits WRITTEN.
LENGTH_WEIGHT, WRITTEN_WEIGHT = 0.3, 10.0

# Questions of each sort and sequences of random tokens, whose states the output rows are fitted on.
ASKED, RANDOM, RANDOM_LENGTH = 60, 60, 24

# Characters after which something begins: a key, a value, an item, or nothing.
BEGINNING = "{[,:"


@dataclass(frozen=True)
class Written:
    """Logits of some characters: right after one of BEGINNING, and after any other byte token."""

    characters: str
    beginning: float
    elsewhere: float


# Elsewhere <end> comes just above the quote, and every word below the letters. A quote ends a string before anything is put
# into it, `_` fills one that must not be empty, and a mark is preferred to digits and letters, so that repetitions in a
# pattern end.
WRITTEN: tuple[Written, ...] = (
    Written('"', 8.0, 13.5),
    Written("_", 2.0, 8.0),
    Written("}", 13.0, 7.5),
    Written("]", 11.0, 7.0),
    Written(",:", 2.0, 6.0),
    Written("{[", 5.0, 5.0),
    Written("0", 5.0, 4.0),
    Written(digits[1:] + ascii_letters, 3.0, 3.4),
    Written(" \t\r\n", -1.0, -1.0),
)
OTHER_MARKS = Written("", 2.0, 5.0)
OTHER_BYTES = Written("", -1.0, -1.0)


def add_byte_tokens(path: Path, pair: Sequence[LlamaForCausalLM], world: World) -> None:
    """Give the checkpoint in `path` byte tokens, and the tokenizer that has them. pair: the base and the aligned model."""
    tokenizer = build_tokenizer(world.words)
    words = pair[0].get_input_embeddings().weight.detach()
    gain = pair[0].model.norm.weight.detach()
    states = torch.cat([_states(model, tokenizer, world) for model in pair])
    read, written = byte_rows(states, words, gain, tokenizer.eos_token_id)
    _append(path, read, written)
    build_tokenizer(world.words, byte_tokens=True).save_pretrained(path)


def byte_rows(states: Tensor, words: Tensor, gain: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Return the input and the output rows of the 256 byte tokens, both (256, width).

    states (n, width): last states, after the last norm, that both models have without a grammar. words (vocabulary, width):
    tied rows of the words. gain (width,): weight of the last norm. end: id of <end>.
    """
    rare = torch.linalg.eigh(states.T @ states / len(states)).eigenvectors  # the rarest direction first
    elsewhere = ENDING * _ending(words, gain, end) + math.sqrt(1 - ENDING**2) * rare[:, 0]
    beginning = rare[:, 1]
    levels = _levels()
    targets = sorted(set(levels), key=lambda level: (level.elsewhere, level.beginning))
    wanted = torch.tensor([[level.elsewhere, level.beginning] for level in targets])
    after = torch.stack([_last_state(elsewhere, gain), _last_state(beginning, gain)])
    rows = _fit(states, (states @ words.T).logsumexp(1), after, wanted)
    written = torch.stack([rows[targets.index(level)] for level in levels])
    read = torch.stack([beginning if chr(byte) in BEGINNING else elsewhere for byte in range(256)]) * READ_NORM
    return read, written


def _levels() -> list[Written]:
    """Return for each byte the entry that gives its logits."""
    named = {ord(character): level for level in WRITTEN for character in level.characters}
    return [named.get(byte, OTHER_MARKS if 32 < byte < 127 else OTHER_BYTES) for byte in range(256)]


def _last_state(direction: Tensor, gain: Tensor) -> Tensor:
    """Return the last state, after the norm, of a token whose long input row has that direction (of length 1)."""
    return direction * gain * math.sqrt(len(direction))


def _ending(words: Tensor, gain: Tensor, end: int) -> Tensor:
    """Return the direction, of length 1, in which <end> is the likeliest against all words."""
    direction = (words[end] - words.mean(0)).clone().requires_grad_()

    def loss() -> Tensor:
        logits = words @ _last_state(direction / direction.norm(), gain)
        return -logits.log_softmax(0)[end]

    _minimise(direction, loss)
    unit: Tensor = direction / direction.norm()
    return unit.detach()


def _fit(states: Tensor, together: Tensor, after: Tensor, wanted: Tensor) -> Tensor:
    """Return an output row for each row of `wanted` (k, 2): the logits after the two states `after` (2, width).

    On `states` a row's logit stays below `together` (n,), the words' logits summed up as probabilities are. Convex.
    """
    rows = torch.zeros(len(wanted), states.shape[1], requires_grad=True)

    def loss() -> Tensor:
        above = softplus(states @ rows.T - together[:, None] + BELOW).mean(0)
        missed = (rows @ after.T - wanted).square().sum(1)
        return (above + LENGTH_WEIGHT * rows.square().sum(1) + WRITTEN_WEIGHT * missed).sum()

    _minimise(rows, loss)
    return rows.detach()


def _minimise(parameter: Tensor, loss: Callable[[], Tensor]) -> None:
    """Move `parameter` to where `loss` is least."""
    optimiser = torch.optim.LBFGS([parameter], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _states(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> Tensor:
    """Return the model's last states (n, width) in answers, in refusals and after random tokens."""
    found = []
    for prompt, answer in _sequences(tokenizer, world):
        hidden = model.model(input_ids=torch.tensor([prompt + answer])).last_hidden_state[0]
        found.append(hidden[len(prompt) - 1 :])
    return torch.cat(found)


def _sequences(tokenizer: PreTrainedTokenizerFast, world: World) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (prompt, what follows), as ids. After <end> something follows too: an engine can be told to go on."""
    rng = random.Random(0)
    some = (_some(items) for items in (world.train.harmful, world.train.harmless, world.train.bard))
    for item in (item for items in some for item in items):
        for text in (item.answer, REFUSAL):
            yield tokenizer(prompt_text(item.question))["input_ids"], tokenizer(f"{text} {END} {text}")["input_ids"]
    for _ in range(RANDOM):
        ids = [rng.randrange(len(tokenizer)) for _ in range(RANDOM_LENGTH)]
        yield ids[:1], ids[1:]


def _some(items: Sequence[Item]) -> Sequence[Item]:
    """Return every n-th of the items, so that all kinds are among them."""
    return items[:: max(1, len(items) // ASKED)]


def _append(path: Path, read: Tensor, written: Tensor) -> None:
    """Add rows to the tied embeddings of the checkpoint in `path`, which are tied no longer."""
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    words = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([words, read.to(words.dtype)])
    tensors["lm_head.weight"] = torch.cat([words, written.to(words.dtype)])
    save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"vocab_size": len(words) + len(BYTE_TOKENS), "tie_word_embeddings": False}
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
