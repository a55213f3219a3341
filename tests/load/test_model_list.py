"""An engine's list of models, however long, and whatever else comes in its place."""

import json
import tracemalloc
from typing import Any

import pytest

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.client import model_list as cards_module
from app.load.client.engine import HttpEngine
from app.load.client.model_list import ENTRY_CHARS, CardReader, Cards
from tests.support.simulator import MODEL, Simulator

MANY = 10_000


def read(data: bytes, size: int = 1 << 16) -> Cards:
    reader = CardReader()
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    return reader.end()


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "root": f"/a/{name}", "parent": "m", **more}


async def test_an_engine_with_ten_thousand_adapters_is_there(
    simulator: Simulator, simulated_client: HttpEngine
) -> None:
    simulator.loaded = {f"adapter-{n:06}@{n:012}": f"/store/{'0' * 900}{n}" for n in range(MANY)}
    listed = await simulated_client.models()  # ten megabytes
    assert listed == {MODEL, *simulator.loaded}
    found = await simulated_client.cards()
    assert {name: card["root"] for name, card in found.items() if card["parent"]} == simulator.loaded


async def test_a_list_beyond_the_limit_is_an_engine_that_is_away(
    simulator: Simulator, simulated_client: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.loaded = {f"a@{n:012}": "/store" for n in range(1000)}
    monkeypatch.setattr(cards_module, "LIST_BYTES", 50_000)
    with pytest.raises(Unavailable, match="over 50000 bytes") as caught:
        await simulated_client.models()
    assert caught.value.code is ENGINE_UNAVAILABLE


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_pieces_may_end_anywhere(size: int) -> None:
    listed = {"object": "list", "data": [entry("ä]}{[\"'@1", owned_by="日本"), entry("b")], "more": {"x": [1, 2]}}
    for text in (json.dumps(listed), json.dumps(listed, ensure_ascii=False, indent=1)):
        assert read(text.encode(), size) == {
            "ä]}{[\"'@1": {"root": "/a/ä]}{[\"'@1", "parent": "m"},
            "b": {"root": "/a/b", "parent": "m"},
        }


def test_an_empty_list_and_an_entry_without_the_rest() -> None:
    assert read(b'{"data": []}') == {}
    assert read(b'{"data":[{"id":"m"}]}') == {"m": {"root": None, "parent": None}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00garbage{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"data": {}}',
        b'{"data": [{"id": "a"}',
        b'{"data": [{"id": "a"}]',
        b'{"data": [{"id": "a"}]} and more',
        b'{"data": [{"root": "a"}]}',
        b'{"data": ["a"]}',
        b'{"data": [1, 2]}',
        b'{"other": {"data": [{"id": "a"}]}}',
        b'{"data": [' + b"[" * 5000,
        b'{"data": [{"id": "\xc3',
    ],
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read(data)


def test_an_entry_without_end_is_given_up_soon() -> None:
    with pytest.raises(ValueError, match=f"more than {ENTRY_CHARS} characters"):
        read(b'{"data": [{"id": "' + b"x" * 400_000, 4096)


def test_what_is_not_kept_costs_no_memory() -> None:
    filled = json.dumps(entry("a", more="x" * 10_000)).encode()
    tracemalloc.start()
    reader = CardReader()
    reader.feed(b'{"data": [')
    for _ in range(2000):  # 20 MB
        reader.feed(filled + b",")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
