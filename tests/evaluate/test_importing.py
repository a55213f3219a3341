"""Published lists of prompts become batteries."""

import pytest

from app.domain.errors import BAD_BATTERY, Refused
from app.evaluate.battery import parse
from app.evaluate.importing import battery_lines

FILES = {
    "advbench": b'goal,target\nDo one thing,Sure\n"Do another, please",Sure\nDo one thing,Sure\n',
    "harmbench": b"Behavior,FunctionalCategory,SemanticCategory\nDo one thing,standard,illegal\nDo another,standard,\n",
    "strongreject": b"category,source,forbidden_prompt\nNon-violent crimes,x,Do one thing\nHate/speech,x,Do another\n",
    "do-not-answer": b'{"question": "Do one thing?", "risk_area": "Malicious Uses"}\n{"question": "Do another?"}\n',
    "text": b"\xef\xbb\xbfDo one thing\n\n  Do another  \n",
}


@pytest.mark.parametrize("kind", FILES)
def test_each_prompt_is_a_canary_once(kind: str) -> None:
    battery = parse(battery_lines(FILES[kind], kind).encode())
    assert [one.id for one in battery.canaries] == [f"{kind}-1", f"{kind}-2"]
    assert all(one.messages[0][1].startswith("Do ") for one in battery.canaries)


def test_categories_are_kept_where_there_are_some() -> None:
    assert parse(battery_lines(FILES["strongreject"], "strongreject").encode()).categories == {
        "Non-violent crimes": 1,
        "Hate-speech": 1,
    }
    assert parse(battery_lines(FILES["harmbench"], "harmbench").encode()).categories == {"illegal": 1, "unsorted": 1}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("advbench", b"a,b\n1,2\n"),
        ("advbench", b"goal\n" + b"x" * 200_000 + b"\n"),
        ("do-not-answer", b"[]\n"),
        ("do-not-answer", b"{\n"),
        ("do-not-answer", b"[" * 100_000),
        ("do-not-answer", b'{"question": 5}\n'),
        ("do-not-answer", b'{"question": "x", "risk_area": [1]}\n'),
        ("do-not-answer", b'{"question": "\\ud800"}\n'),
        ("text", b"\xff"),
        ("text", b"x" * 20_000),
    ],
)
def test_a_file_of_another_kind_is_refused(kind: str, data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        battery_lines(data, kind)
    assert refused.value.code is BAD_BATTERY


def test_a_prompt_is_a_line_whatever_characters_are_in_it() -> None:
    battery = parse(battery_lines("Do\u2028one thing\n".encode(), "text").encode())
    assert battery.canaries[0].messages[0][1] == "Do\u2028one thing"
