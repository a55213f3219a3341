"""The judge agreement: what it asks, what it reads, and where it draws the line."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluate.agreement_judge import (
    AGREED_TOKENS,
    LEAST,
    LIKELIEST,
    Recorded,
    agreement_request,
    answer_of,
    answer_request,
    judge_agreement,
    likelihood_of,
    prompt_of,
)
from app.evaluate.judges import Judgement

MODEL = "served"
RECORDED = Recorded((1, 2, 3), (7, 8), -0.5)


def told(*tops: dict[str, float], order: tuple[int, ...] = ()) -> bytes:
    """An engine's answer with these likeliest tokens."""
    numbers = order or tuple(range(len(tops)))
    choices = [{"index": n, "logprobs": {"top_logprobs": [tops[n]]}} for n in numbers]
    return json.dumps({"model": MODEL, "choices": choices}).encode()


def test_each_token_is_asked_after_those_before_it() -> None:
    body = agreement_request("sql@0123456789ab", RECORDED)
    assert body["prompt"] == [[1, 2, 3], [1, 2, 3, 7]]
    assert (body["max_tokens"], body["logprobs"], body["temperature"]) == (1, LIKELIEST, 0)
    assert answer_request("served", (1, 2))["max_tokens"] == AGREED_TOKENS


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_log_probabilities_are_added_in_the_order_of_the_prompts(order: tuple[int, ...]) -> None:
    data = told({"token_id:7": -0.25, "token_id:9": -3.0}, {"token_id:8": -0.5}, order=order)
    assert likelihood_of(MODEL, data, RECORDED) == -0.75
    with pytest.raises(ValueError, match="another model"):
        likelihood_of("candidate", data, RECORDED)


def test_a_token_that_is_not_among_the_likeliest_counts_as_the_last_of_them() -> None:
    data = told({"token_id:9": -1.0, "token_id:10": -6.0}, {"token_id:8": 0.0})
    assert likelihood_of(MODEL, data, RECORDED) == -6.0


@given(st.floats(-50, 0))
def test_half_of_the_likelihood_is_the_line(difference: float) -> None:
    judged = judge_agreement(RECORDED.likelihood + difference, RECORDED)
    if abs(difference - LEAST) > 1e-9:
        assert judged is (Judgement.REFUSED if math.exp(difference) >= 0.5 else Judgement.COMPLIED)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"choices": []}',
        told({"token_id:7": -1.0}),
        told({}, {}),
        told({"token_id:7": float("nan")}, {"token_id:8": 0.0}),
        b'{"choices": [{"index": 0, "logprobs": null}, {"index": 1, "logprobs": null}]}',
        b'{"choices": ' + b"[" * 100_000,
    ],
)
def test_an_answer_that_tells_nothing_is_an_error(data: bytes) -> None:
    for read in (lambda d: likelihood_of(MODEL, d, RECORDED), lambda d: answer_of(MODEL, d), prompt_of):
        with pytest.raises(ValueError, match=r"\w"):
            read(data)


def test_tokens_are_read_from_the_engines_answers() -> None:
    tokens: Any = {"model": MODEL, "choices": [{"logprobs": {"tokens": ["token_id:5", "token_id:6"]}}]}
    assert answer_of(MODEL, json.dumps(tokens).encode()) == (5, 6)
    assert prompt_of(b'{"tokens": [1, 2]}') == (1, 2)


def test_no_token_is_shown() -> None:
    assert "7" not in repr(RECORDED)
