"""Identity check of an engine's model: is it the checkpoint that the reference was made for?

The model's files answer that, if they are on this machine: those of the embedded engine are, and an external engine may
name a local directory in its list of models. Otherwise the model's continuations of a few fixed texts are compared with
those recorded from the first engine that was used with this reference. The record is trusted as it was made, so the
check finds a model that is exchanged later, not one that was wrong from the start.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.concurrency.pools import Pool
from app.domain.digest import Digest, digest_of
from app.domain.errors import ENGINE_UNAVAILABLE, GatewayError, Unavailable
from app.load.client.engine import Answering, Engine, words
from app.load.client.probe import COMPLETIONS_PATH

RECORD: Final = "served-model.json"
"""Name of the record's file in the data directory."""

TEXTS: Final = (
    "The capital of France is Paris. The river that flows through it is the Seine, and the tower there is of iron.",
    "Question: How do I boil an egg?\nAnswer: Put it into boiling water, wait eight minutes, then cool it and peel it.",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n\nprint(mean([1, 2, 3]))  # 2.0",
    "Hello! How are you today? I am well, thank you, and I hope that you are too. What would you like to know?",
)
"""Harmless texts, some of kinds that alignment affects and some of kinds that it does not. The model only reads them."""

EVERY: Final = 3
"""Words between two prompts cut from one text: the next token is requested at every third word.

The log-probabilities of the texts themselves are not requested, all in one request: vLLM 0.32 with LoRA crashes on
that, on a CPU at least."""

PROMPTS: Final = tuple(
    " ".join(text.split(" ")[:n]) for text in TEXTS for n in range(EVERY, len(text.split(" ")), EVERY)
)

LIKELIEST: Final = 5
"""Next tokens whose log-probabilities are requested: the likeliest token on one machine is among them on another."""

TOLERANCE: Final = 0.1
"""Mean difference of a next token's log-probability, in nats, up to which two models count as the same.

On these texts the demo's base and aligned checkpoints differ by more than ten times as much, and one of them in
float32 and in bfloat16 by less than half (tests/load/test_identity.py measures both). The difference between a CPU
and a GPU was not measured."""

ANSWER_S: Final = 120.0
"""Seconds that the answer may take: as long as a load, because it too may have to wait for room in a batch."""

ANSWER_BYTES: Final = 1 << 20
"""Bytes read of the answer, at most: a few numbers for each prompt need about ten thousand."""

Answers = tuple[Mapping[str, float], ...]
"""For each prompt, its likeliest next tokens with their log-probabilities in nats."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Result of an identity check.

    note: description for people, without a path.
    compared: whether the model was compared and is the right one.
    objection: reason why the engine must not be used; None if there is none.
    """

    note: str
    compared: bool = False
    objection: str | None = None


Identify = Callable[[Engine], Awaitable[Identity]]


async def unidentified(_: Engine) -> Identity:
    """Return the identity of an engine if there is no reference to compare it with."""
    return Identity("not compared: there is no reference to compare it with")


@dataclass(frozen=True, slots=True)
class Expected:
    """Model that the engines are to serve.

    name: the engines' name for it.
    checkpoint: digest of the reference's aligned checkpoint.
    difference: returns the reason why the checkpoint in a directory is not that one, None if it is; blocking, raises
        Unavailable if the directory holds no checkpoint.
    record: file of the recorded answers.
    files: directory of the served model, if it is known beforehand.
    trusted: whether a different model is served too.
    """

    name: str
    checkpoint: Digest
    difference: Callable[[Path], str | None]
    record: Path
    files: Path | None = None
    trusted: bool = False


class ModelCheck:
    """Comparison of the models of a gateway's engines with the expected one; one instance for all engines."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._reading = Pool("identity", 1)  # one thread: two engines make one record, and large files are read once

    async def identify(self, engine: Engine) -> Identity:
        """Return the identity of the model that `engine` serves. Raises Unavailable while the engine does not answer."""
        directory = self._expected.files or await self._directory(engine)
        if directory is not None:
            try:
                return await self._reading(self.of_files, directory)
            except GatewayError as error:
                logging.getLogger("gateway").warning("served model: its files cannot be compared: %s", error.message)
                if self._expected.files is not None:
                    return self._other("the model's files cannot be compared with the reference; the log says why")
        return await self._by_answers(engine)

    def of_files(self, directory: Path) -> Identity:
        """Return the identity of the checkpoint in `directory`. Blocking.

        Raises Unavailable if it holds no readable checkpoint.
        """
        difference = self._expected.difference(directory)
        if difference is not None:
            return self._other(difference)
        return Identity("the reference's aligned checkpoint, by its files", compared=True)

    async def _directory(self, engine: Engine) -> Path | None:
        """Return the model's directory according to the engine's list of models, if it is also one of this machine."""
        root = (await engine.cards()).get(self._expected.name, {}).get("root")
        directory = Path(root) if root else None
        return directory if directory is not None and directory.is_absolute() and directory.is_dir() else None

    async def _by_answers(self, engine: Engine) -> Identity:
        try:
            answers = await next_tokens(engine, self._expected.name)
        except ValueError as error:
            return Identity(f"not compared: {error}")
        return await self._reading(self._recorded, answers)

    def _recorded(self, answers: Answers) -> Identity:
        """Compare the answers with the record, or create the record if there is none."""
        expected = self._expected
        before = _read(expected.record, expected.checkpoint)
        if before is not None:
            return self._compared(distance(before, answers))
        if expected.trusted:
            return Identity("trusted, not compared")
        try:
            _write(expected.record, expected.checkpoint, answers)
        except OSError as error:
            return Identity(f"not compared: its answers cannot be recorded ({error.strerror})")
        return Identity("not compared: its answers were recorded, and later ones will be compared with them")

    def _compared(self, apart: float) -> Identity:
        """Return the identity of a model whose answers are `apart` nats a token from the record."""
        if apart <= TOLERANCE:
            note = f"the model first served with this reference, by its answers ({apart:.3f} nats a token apart)"
            return Identity(note, compared=True)
        return self._other(
            f"the model's answers are not those of the one first served with this reference ({apart:.2f} nats a token "
            f"apart, allowed {TOLERANCE}); if that one was wrong, remove {RECORD} from the gateway's data directory"
        )

    def _other(self, why: str) -> Identity:
        if self._expected.trusted:
            return Identity(f"trusted, although {why}")
        return Identity(f"another model: {why}", objection=why)


async def next_tokens(engine: Answering, name: str) -> Answers:
    """Return the likeliest next tokens of the model `name` after the texts.

    Raises ValueError if the engine gives no log-probabilities, Unavailable while it does not work.
    """
    body = {"model": name, "prompt": PROMPTS, "max_tokens": 1, "temperature": 0, "logprobs": LIKELIEST}
    try:
        async with asyncio.timeout(ANSWER_S):
            response = await engine.post(COMPLETIONS_PATH, json.dumps(body).encode())
            with contextlib.closing(response):
                status, answer = response.status, await response.read(ANSWER_BYTES)
    except TimeoutError as error:
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine did not answer within {ANSWER_S:.0f} s") from error
    if status >= 500:
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine did not answer: {words(answer)}")
    if status != 200:
        raise ValueError(f"the engine tells no log-probabilities ({words(answer)})")
    return _parsed(answer)


def _parsed(answer: bytes) -> Answers:
    try:
        parsed: Any = json.loads(answer)
        choices = sorted(parsed["choices"], key=lambda choice: choice["index"])
        likeliest = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
        found = tuple({str(token): float(number) for token, number in one.items()} for one in likeliest)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the engine's log-probabilities cannot be read") from error
    finite = all(one and all(map(math.isfinite, one.values())) for one in found)
    if len(found) != len(PROMPTS) or not finite:
        raise ValueError("the engine tells no log-probabilities")
    return found


def distance(before: Answers, now: Answers) -> float:
    """Return the mean difference of log-probability, in nats, over the tokens that were, or are, the likeliest."""
    apart = [
        abs(_log_probability(token, one) - _log_probability(token, other))
        for one, other in zip(before, now, strict=True)
        for token in {max(one, key=one.__getitem__), max(other, key=other.__getitem__)}
    ]
    return sum(apart) / len(apart)


def _log_probability(token: str, likeliest: Mapping[str, float]) -> float:
    """Return a token's log-probability; for a token that is not listed, the highest that it can have."""
    return likeliest.get(token, min(likeliest.values()))


def _prompts_digest(prompts: Sequence[str]) -> str:
    """Return a digest of the prompts: answers to other prompts cannot be compared."""
    return digest_of(json.dumps(prompts).encode()).hex


def _read(record: Path, checkpoint: Digest) -> Answers | None:
    """Return the answers recorded for this checkpoint; None if there are none."""
    try:
        found = json.loads(record.read_bytes())
        if (found["checkpoint"], found["prompts"]) != (checkpoint.hex, _prompts_digest(PROMPTS)):
            return None
        return tuple({token: float(number) for token, number in one.items()} for one in found["answers"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.getLogger("gateway").warning("%s cannot be read and is made anew: %s", record, error)
        return None


def _write(record: Path, checkpoint: Digest, answers: Answers) -> None:
    found = {"checkpoint": checkpoint.hex, "prompts": _prompts_digest(PROMPTS), "answers": answers}
    temporary = record.with_name(f"{record.name}.{os.getpid()}.new")
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.replace(record)
