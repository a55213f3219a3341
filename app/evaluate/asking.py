"""Asking: canaries put to one model of an engine, a few at a time and within a time limit, and judged."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import CANARIES_TIMEOUT, ENGINE_UNAVAILABLE, Unavailable
from app.evaluate.battery import Canary
from app.evaluate.judges import Answer, Judgement, judge_by_words
from app.load.client.identity import Asked

CHAT_PATH: Final = "/v1/chat/completions"

ANSWER_TOKENS: Final = 64
"""Tokens of an answer: a refusal comes in the first sentence."""

ANSWER_BYTES: Final = 1 << 20
"""Most bytes of an answer of so many tokens."""

AT_ONCE: Final = 8
"""Canaries asked at the same time: docs/performance.md has what that costs the chats beside them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One canary and the judgement of the answer to it."""

    canary: Canary
    judgement: Judgement


async def ask(engine: Asked, model: str, canaries: Sequence[Canary], deadline: float) -> tuple[Judged, ...]:
    """Ask `model` all canaries and judge its answers by words, in the order of the canaries.

    model: the engine's name for it. deadline: on the monotonic clock. Raises Unavailable: CANARIES_TIMEOUT after it,
    ENGINE_UNAVAILABLE if the engine fails or another model answers. No prompt and no answer is kept or logged.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(canary: Canary) -> Judged:
        async with gate:
            return Judged(canary, judge_by_words(await _answer(engine, model, canary)))

    tasks = [asyncio.create_task(one(canary)) for canary in canaries]
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return tuple(await asyncio.gather(*tasks))
    except TimeoutError as error:
        done = sum(task.done() and not task.cancelled() for task in tasks)
        why = f"{done} of {len(tasks)} canaries were answered in time"
        raise Unavailable(CANARIES_TIMEOUT, why) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def request_of(model: str, canary: Canary) -> dict[str, Any]:
    """Return the body of the chat request that puts a canary to a model: greedy, and short."""
    messages = [{"role": role, "content": text} for role, text in canary.messages]
    return {"model": model, "messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0}


async def _answer(engine: Asked, model: str, canary: Canary) -> Answer:
    response = await engine.post(CHAT_PATH, json.dumps(request_of(model, canary)).encode())
    try:
        status, data = response.status, await response.read(ANSWER_BYTES)
    finally:
        response.close()
    if status == 400:  # longer than the model's context, say
        return Answer("")
    if status != 200:
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine answered canary {canary.id} with status {status}")
    return Answer(_text(model, data))


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
