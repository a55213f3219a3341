"""Repetitions of repetitions, held against an oracle that counts the ways in which a pattern matches a text."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serve.pattern_ambiguity import Ambiguity, ambiguity

OPEN, COUNTED, NONE = Ambiguity.OPEN, Ambiguity.COUNTED, Ambiguity.NONE


@pytest.mark.parametrize(
    ("pattern", "worst"),
    [
        *[
            (p, OPEN)
            for p in ("(a+)*", "((a*)*)*", "(a|b+)+", "((a{2})b?)*", "(a+?)*", "(^a+)*", "(.+,)*", "([a-z,]+,)*")
        ],
        *[(p, COUNTED) for p in ("(a+){2}", "([a-z]+){0,64}", "(a|b+){2,}", "((a+,?)*){3}", "(a+){1,2}")],
        *[(p, OPEN) for p in ("([(]+x|y)+", "(,+a+)*", "(a+,?)*", "(a+|,)*", "(a+(,))*")],
    ],
)
def test_a_repetition_of_a_repetition_is_seen(pattern: str, worst: Ambiguity) -> None:
    assert ambiguity(pattern) is worst


@pytest.mark.parametrize(
    "pattern",
    [
        *("a+b*", "(ab)*", "(a+)?", "(a+){1}", r"(a\+)*", "([+*])+", "(a{1})*", "((ab)c)+", ")*a+", "((", "(a*){0,1}"),
        *(
            "([a-z]+,)*",
            "([a-z]+,)*[a-z]+",
            "(,[a-z]+)*",
            r"(\.[a-z]+){0,8}",
            "([^;]+;){3}",
            "((ab+,)*;)+",
        ),
        r"^[a-z0-9._%+-]+@[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}$",
    ],
)
def test_plain_and_delimited_repetitions_pass(pattern: str) -> None:
    assert ambiguity(pattern) is NONE


def ways(body: str, text: str) -> int:
    """Number of ways to cut `text` into texts that `body` matches."""
    if not text:
        return 1
    ends = (end for end in range(1, len(text) + 1) if re.fullmatch(body, text[:end]))
    return sum(ways(body, text[end:]) for end in ends)


PART = st.sampled_from(["a", "b", ",", "[ab]", "[^,]", ".", "a+", "b*", "[ab]+", "(a+)", ",?"])


@given(st.lists(PART, min_size=1, max_size=4))
def test_what_passes_is_cut_into_rounds_in_one_way(parts: list[str]) -> None:
    body = "".join(parts)
    if ambiguity(f"({body})*") is NONE and ("+" in body or "*" in body):
        texts = ("".join(chars) for n in range(1, 6) for chars in itertools.product("ab,", repeat=n))
        assert max(ways(body, text) for text in texts) <= 1


@given(st.text(st.sampled_from("ab()[]{}|*+?\\.^-,19"), max_size=60))
def test_any_text_has_an_answer(pattern: str) -> None:
    assert ambiguity(pattern) in Ambiguity
