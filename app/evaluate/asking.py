"""Asking: canaries put to one model of an engine, a few at a time and within a time limit, and judged.

A judgement by the served model belongs to its canary: it takes the canary's place among those that are asked at the same
time, and is part of the same time limit.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from app.domain.errors import CANARIES_TIMEOUT, CANARIES_UNUSABLE, ENGINE_UNAVAILABLE, Unavailable
from app.evaluate.agreement_judge import (
    Recorded,
    agreement_request,
    answer_of,
    answer_request,
    judge_agreement,
    likelihood_of,
    prompt_of,
    prompt_request,
)
from app.evaluate.battery import Canary
from app.evaluate.judges import Answer, Judge, Judgement, judge_by_words
from app.evaluate.served_model_judge import CONTROLS, needs_served_model, verdict_of, verdict_request
from app.load.client.engine import Answering
from app.load.client.probe import COMPLETIONS_PATH

CHAT_PATH: Final = "/v1/chat/completions"
TOKENIZE_PATH: Final = "/tokenize"

ANSWER_TOKENS: Final = 64
"""Tokens of an answer: a refusal comes in the first sentence."""

DRAW_TEMPERATURE: Final = 0.1
"""Temperature of answers that are drawn. So low that an answer differs from the greedy one only where another token is
nearly as likely: at half the likelihood it is drawn once in a thousand times (0.5 ** 10). Ours."""

ANSWER_BYTES: Final = 1 << 20
"""Most bytes of an answer of so many tokens."""


JUDGEMENT_S: Final = 60.0
"""Seconds of one judgement by the served model: one token after a short text, in an engine that others keep busy. Ours."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One canary and the judgement of the answer to it.

    fault: whether the served model was to judge, and the engine failed or was too slow; the answer counts as complied with.
    """

    canary: Canary
    judgement: Judgement
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Judging:
    """Judge of answers. engine, served_model: an engine, and its name for the served model itself, which judges there.

    recorded: canary → the served model's answer, for the judge AGREEMENT.
    """

    judge: Judge
    engine: Answering
    served_model: str
    recorded: Mapping[Canary, Recorded] = field(default_factory=dict)


async def ask(
    engine: Answering,
    model: str,
    canaries: Sequence[Canary],
    deadline: float,
    at_once: Callable[[], int],
    draw: int | None = None,
    judging: Judging | None = None,
) -> tuple[Judged, ...]:
    """Ask `model` all canaries and have its answers judged, in the order of the canaries.

    model: the engine's name for it. deadline: on the monotonic clock. at_once: returns the number of canaries to be asked
    at the same time from now on, at least 1. draw: see `request_of`. judging: None for keywords. Raises Unavailable:
    CANARIES_TIMEOUT after the deadline, ENGINE_UNAVAILABLE if the engine fails or another model answers. No prompt and no
    answer is kept or logged.
    """

    async def one(canary: Canary) -> Judged:
        if judging is not None and (recorded := judging.recorded.get(canary)) is not None:
            return await _compared(engine, model, canary, recorded)
        return await _judged(judging, canary, await _answer(engine, request_of(model, canary, draw), canary))

    waiting, tasks = deque(canaries), list[asyncio.Task[Judged]]()
    running: set[asyncio.Task[Judged]] = set()
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            while waiting or running:
                while waiting and len(running) < at_once():
                    running.add(task := asyncio.create_task(one(waiting.popleft())))
                    tasks.append(task)
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            return tuple(task.result() for task in tasks)
    except TimeoutError as error:
        answered = sum(task.done() and not task.cancelled() for task in tasks)
        why = f"{answered} of {len(canaries)} canaries were answered in time"
        raise Unavailable(CANARIES_TIMEOUT, why) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def request_of(model: str, canary: Canary, draw: int | None = None) -> dict[str, Any]:
    """Return the body of the chat request that puts a canary to a model, for a short answer.

    draw: None for the greedy answer; else one drawn at DRAW_TEMPERATURE, without a seed: vLLM 0.32's CPU build crashes if
    it reads a prompt with a seed in several steps.
    """
    messages = [{"role": role, "content": text} for role, text in canary.messages]
    drawn = {"temperature": 0} if draw is None else {"temperature": DRAW_TEMPERATURE}
    return {"model": model, "messages": messages, "max_tokens": ANSWER_TOKENS, **drawn}


async def record(judging: Judging, canary: Canary, deadline: float) -> Recorded:
    """Record the served model's answer to a canary. deadline: on the monotonic clock.

    Raises Unavailable: CANARIES_TIMEOUT, ENGINE_UNAVAILABLE, CANARIES_UNUSABLE if the engine tells no log-probabilities.
    """
    engine, model = judging.engine, judging.served_model
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            prompt = prompt_of(await _post(engine, TOKENIZE_PATH, prompt_request(model, canary), canary))
            answer = answer_of(model, await _post(engine, COMPLETIONS_PATH, answer_request(model, prompt), canary))
            recorded = Recorded(prompt, answer)
            return replace(recorded, likelihood=await likelihood(engine, model, canary, recorded))
    except TimeoutError as error:
        raise Unavailable(CANARIES_TIMEOUT, "the served model's answers were not recorded in time") from error
    except ValueError as error:
        why = f"the engine tells no log-probabilities that can be read ({error}): set GATEWAY_CANARY_JUDGE=words"
        raise Unavailable(CANARIES_UNUSABLE, why) from error


async def _compared(engine: Answering, model: str, canary: Canary, recorded: Recorded) -> Judged:
    """Return the judgement by agreement. A likelihood that cannot be read counts as complied with."""
    try:
        return Judged(canary, judge_agreement(await likelihood(engine, model, canary, recorded), recorded))
    except ValueError:
        return Judged(canary, Judgement.COMPLIED, fault=True)


async def likelihood(engine: Answering, model: str, canary: Canary, recorded: Recorded) -> float:
    """Return the log-likelihood, in nats, of a recorded answer for a model. Raises ValueError, Unavailable."""
    data = await _post(engine, COMPLETIONS_PATH, agreement_request(model, recorded), canary)
    return likelihood_of(model, data, recorded)


async def _judged(judging: Judging | None, canary: Canary, answer: Answer) -> Judged:
    """Return the judgement of an answer. One that the served model does not give counts as complied with."""
    by_words = judge_by_words(answer)
    if judging is None or answer.text is None or not needs_served_model(judging.judge, canary, by_words):
        return Judged(canary, by_words)
    try:
        return Judged(canary, await _verdict(judging, canary, answer.text) or Judgement.COMPLIED)
    except Unavailable:
        return Judged(canary, Judgement.COMPLIED, fault=True)


async def _verdict(judging: Judging, canary: Canary, text: str) -> Judgement | None:
    """Return the served model's judgement; None if it says neither yes nor no. Raises Unavailable ENGINE_UNAVAILABLE."""
    try:
        async with asyncio.timeout(JUDGEMENT_S):
            verdict = await _answer(judging.engine, verdict_request(judging.served_model, canary, text), canary)
    except TimeoutError as error:
        raise Unavailable(ENGINE_UNAVAILABLE, f"canary {canary.id} was not judged in {JUDGEMENT_S:g} s") from error
    return verdict_of(verdict.text or "")


async def can_judge(judging: Judging, deadline: float) -> bool:
    """Return whether the served model is right about all CONTROLS, asked one after another.

    deadline: on the monotonic clock. Raises Unavailable: CANARIES_TIMEOUT, ENGINE_UNAVAILABLE.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return all([await _verdict(judging, canary, text) is right for canary, text, right in CONTROLS])
    except TimeoutError as error:
        raise Unavailable(CANARIES_TIMEOUT, "the served model did not judge simple answers in time") from error


async def _answer(engine: Answering, body: Mapping[str, Any], canary: Canary) -> Answer:
    data = await _post(engine, CHAT_PATH, body, canary)
    return Answer(_text(body["model"], data) if data else "")


async def _post(engine: Answering, path: str, body: Mapping[str, Any], canary: Canary) -> bytes:
    """Return the engine's answer about a canary; an empty one if it refuses the request. Raises Unavailable."""
    response = await engine.post(path, json.dumps(body).encode())
    try:
        status, data = response.status, await response.read(ANSWER_BYTES)
    finally:
        response.close()
    if status == 400:  # longer than the model's context, say
        return b""
    if status != 200:
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine answered canary {canary.id} with status {status}")
    return data


def _text(model: str, data: bytes) -> str:
    """Return the answer's text; an answer without text is an empty one."""
    try:
        answer: Any = json.loads(data)
        answered_by, text = answer["model"], answer["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine's answer to a canary cannot be read: {error!r}") from None
    if answered_by != model:
        raise Unavailable(ENGINE_UNAVAILABLE, "another model than the one that was asked answered a canary")
    return text if isinstance(text, str) else ""
