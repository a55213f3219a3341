"""The table of refusals: complete, consistent, and nothing hostile leaves through a message."""

import pytest

from app.domain.errors import CODES, TOO_LARGE, Refused, Unavailable
from app.domain.printable import MESSAGE_LIMIT, printable


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
def test_every_row_says_what_a_client_and_a_person_need(code: object) -> None:
    row = CODES[code.name]  # type: ignore[attr-defined]  # parametrised values are objects to the checker
    assert row is code
    assert 400 <= row.status < 600
    assert row.hint.endswith((".", "}", "v2")) or " " in row.hint
    assert row.name.replace("_", "").isalpha()
    assert row.name.islower()


def test_only_waiting_can_help_where_the_row_says_so() -> None:
    assert all(code.status in (429, 500, 502, 503, 507) for code in CODES.values() if code.retryable)


@pytest.mark.parametrize("kind", [Refused, Unavailable])
@pytest.mark.ruling("O07")
def test_messages_are_printable_and_short(kind: type[Refused | Unavailable]) -> None:
    error = kind(TOO_LARGE, "\x1b[31mred\n" + "x" * 10_000, param="a\0b")
    assert error.message.isprintable()
    assert len(error.message) <= MESSAGE_LIMIT
    assert error.param is not None
    assert error.param.isprintable()


def test_printable_escapes_rather_than_drops() -> None:
    assert printable("a\nb") == "a\\nb"
