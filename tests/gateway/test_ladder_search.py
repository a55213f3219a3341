"""Canaries asked at the same time: all that are allowed on an idle engine, a quarter of the chats beside chats."""

import pytest

from app.gateway.ladder_search import AT_ONCE, at_once


@pytest.mark.parametrize(
    ("in_flight", "canaries"), [(0, AT_ONCE), (1, 1), (4, 1), (7, 1), (8, 2), (31, 7), (32, AT_ONCE), (10_000, AT_ONCE)]
)
def test_they_are_a_quarter_of_the_chats_and_at_least_one(in_flight: int, canaries: int) -> None:
    assert at_once(in_flight) == canaries
