"""Requests that other people's clients were seen to send, over the simulated engine: taken, and read as the page says."""

import json

import pytest

from tests.clients.test_conversations import LEFT_OUT, MODEL, left_out
from tests.support.client_programs import REASONING, TOOLS
from tests.support.clients import RECORDED
from tests.support.gateway import Running, form

FILES = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDED.glob("*.json"))]
PARTS = [(one["client"], kind) for one in FILES for kind in one if kind != "client"]


@pytest.mark.parametrize(("client", "kind"), PARTS)
async def test_a_conversation_is_taken_and_its_unknown_fields_are_those_of_the_page(
    running: Running, client: str, kind: str
) -> None:
    (recorded,) = (one[kind] for one in FILES if one["client"] == client)
    assert (await running.http.post("/adapters", files=form(MODEL))).status_code == 201
    ignored: set[str] = set()
    for path, body in recorded:
        answer = await running.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        ignored |= set(filter(None, answer.headers.get("x-gateway-ignored-fields", "").split(", ")))
    assert ignored == left_out(client, kind)
    assert len(recorded) == 2 or kind == TOOLS


def test_every_client_of_the_page_was_recorded() -> None:
    assert {one["client"] for one in FILES} == set(LEFT_OUT)
    with_tools = {client for client, kind in PARTS if kind == TOOLS}
    assert with_tools == set(LEFT_OUT)
    assert {client for client, kind in PARTS if kind == REASONING} == set(LEFT_OUT) - {"llm"}
