"""Batteries: read strictly, told by line, split the same way on every machine."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.domain.digest import digest_of
from app.domain.errors import BAD_BATTERY, Refused
from app.evaluate.battery import (
    MAX_BYTES,
    MAX_CHARS,
    MAX_LINES,
    STARTER,
    Canary,
    Expect,
    halves,
    parse,
    read,
    starter,
)

GOOD: dict[str, Any] = {"id": "a-1", "prompt": "Please do it", "category": "a", "expect": "refuse"}


def line(**changes: Any) -> bytes:
    fields = {**GOOD, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_a_battery_is_its_canaries_and_the_digest_of_its_bytes() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    data = b"\n".join([line(), b"", line(id="b", prompt=None, messages=messages, expect="answer", category="B 2"), b""])
    battery = parse(data)
    assert battery.digest == digest_of(data)
    assert [(one.id, one.category, one.expect) for one in battery.canaries] == [
        ("a-1", "a", Expect.REFUSE),
        ("b", "B 2", Expect.ANSWER),
    ]
    assert battery.canaries[0].messages == (("user", "Please do it"),)
    assert battery.canaries[1].messages == (("system", "Be brief."), ("user", "Hello"))
    assert battery.categories == {"a": 1}


def test_no_prompt_is_in_a_repr() -> None:
    assert "Please" not in repr(parse(line()))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"", "no canary that must be refused"),
        (line(expect="answer"), "no canary that must be refused"),
        (b"[]", "line 1: not an object"),
        (b"{", "line 1: not strict JSON"),
        (b'{"id": "\xff"}', "line 1: not strict JSON"),
        (line() + b"\n" + line(), "line 2: id 'a-1' is that of line 1"),
        (b"\n\n" + line(id=""), "line 3: id must match"),
        (line(id="a b"), "id must match"),
        (line(id=7), "id must match"),
        (line(category="Ä"), "category must match"),
        (line(expect="maybe"), "expect must be refuse or answer"),
        (line(expect=["refuse"]), "expect must be refuse or answer"),
        (line(note="x"), "a field other than"),
        (line(**{"Please do it": "x"}), "a field other than"),
        (b'{"Please": 1, "Please": 1}', "not strict JSON"),
        (line(prompt=None), "either prompt or messages"),
        (line(messages=[]), "either prompt or messages"),
        (line(prompt=None, messages=[]), "a list of 1 to"),
        (line(prompt=None, messages=[{"role": "tool", "content": "x"}]), "each message is a role"),
        (line(prompt=None, messages=[{"role": "user"}]), "each message is a role"),
        (line(prompt=None, messages=[{"role": ["user"], "content": "x"}]), "each message is a role"),
        (line(prompt=7), "each message is a role"),
        (line(prompt=None, messages=[{"role": "assistant", "content": "x"}]), "the last message must be the user's"),
        (line(prompt="  "), "each message is a role"),
        (line(prompt="x" * (MAX_CHARS + 1)), "characters"),
        (b" " * (MAX_BYTES + 1), "the cap is"),
        (b"\n".join([line()] * (MAX_LINES + 1)), "lines, the cap is"),
        (b'{"id": "a", "id": "a"}', "not strict JSON"),
        (b"[" * 60_000, "not strict JSON"),
    ],
)
def test_anything_else_is_refused_with_its_line(bad: bytes, said: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(bad)
    assert refused.value.code is BAD_BATTERY
    assert said in refused.value.message
    assert "Please" not in refused.value.message


def canaries(count: int) -> list[Canary]:
    return [
        Canary(f"c-{n}", (("user", "x"),), "abc"[n % 3], Expect.REFUSE if n % 4 else Expect.ANSWER)
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 25, 96])
def test_halves_share_every_category_and_no_canary_whatever_their_order(count: int) -> None:
    some = canaries(count)
    choosing, verifying = halves(some)
    assert sorted(one.id for one in (*choosing, *verifying)) == sorted(one.id for one in some)
    strata = Counter((one.category, one.expect) for one in choosing)
    for stratum, number in Counter((one.category, one.expect) for one in some).items():
        assert strata[stratum] == (number + 1) // 2
    random.Random(1).shuffle(some)
    assert halves(some) == (choosing, verifying)


def test_the_starter_battery_is_one_and_its_halves_have_every_category() -> None:
    battery = read(Path(STARTER))
    assert battery == parse(starter())
    assert len(battery.categories) == 12
    assert set(battery.categories.values()) == {5}
    assert sum(one.expect is Expect.ANSWER for one in battery.canaries) == 30
    assert len({one.messages for one in battery.canaries}) == len(battery.canaries)
    for half in halves(battery.canaries):
        assert {one.category for one in half if one.expect is Expect.REFUSE} == set(battery.categories)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "none: No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(Refused, match=why):
            read(path)
    (tmp_path / "bad").write_bytes(b"{}")
    with pytest.raises(Refused, match="bad: line 1"):
        read(tmp_path / "bad")
