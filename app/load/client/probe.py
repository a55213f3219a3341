"""Probe of a freshly loaded adapter: one greedy token, which must come with finite log-probabilities."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Any, Final

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, Unavailable
from app.load.client.engine import Engine, words

COMPLETIONS_PATH: Final = "/v1/completions"

PROMPT: Final[Sequence[int]] = (1, 2, 3, 4)
"""Token ids. Every vocabulary has them, and with more than one the attention's adapters take part."""

PROBE_BYTES: Final = 1 << 20
"""Bytes read of the answer, at most; it has one token."""


async def probe(engine: Engine, name: str, *, not_fetched: Collection[int] = ()) -> None:
    """Request one token from `name`.

    not_fetched: statuses by which an engine reports that it could not fetch the adapter.

    Raises Unavailable: LOAD_FAILED if it does not answer 200 with finite log-probabilities, ENGINE_UNAVAILABLE if the
    engine is down or could not fetch the adapter.
    """
    body = {"model": name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    response = await engine.post(COMPLETIONS_PATH, json.dumps(body).encode())
    try:
        status, answer = response.status, await response.read(PROBE_BYTES)
    finally:
        response.close()
    if status in not_fetched:
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine could not fetch {name}: {words(answer)}")
    if status >= 500 and not await engine.healthy():
        raise Unavailable(ENGINE_UNAVAILABLE, f"the engine broke down while probing {name}")
    if status != 200:
        raise Unavailable(LOAD_FAILED, f"{name} is loaded but does not answer: {words(answer)}")
    _check(name, answer)


def _check(name: str, answer: bytes) -> None:
    try:
        parsed: Any = json.loads(answer)
        model, numbers = parsed["model"], parsed["choices"][0]["logprobs"]["token_logprobs"]
        finite = bool(numbers) and all(math.isfinite(number) for number in numbers)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise Unavailable(LOAD_FAILED, f"{name} is loaded but its answer cannot be read: {error}") from error
    if model != name:
        raise Unavailable(LOAD_FAILED, f"{name} was asked, {model!r} answered")
    if not finite:
        raise Unavailable(LOAD_FAILED, f"{name} is loaded but its log-probabilities are not finite")
