"""Requests that other people's clients were seen to send, over the simulated engine: taken, and read as the page says."""

import json
import re
from pathlib import Path

import pytest

from tests.clients.test_conversations import MODEL, left_out
from tests.support.clients import RECORDED
from tests.support.gateway import Running, form

FILES = sorted(RECORDED.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_conversation_is_taken_and_its_unknown_fields_are_those_of_the_page(
    running: Running, file: Path
) -> None:
    recorded = json.loads(file.read_text(encoding="utf-8"))
    assert (await running.http.post("/adapters", files=form(MODEL))).status_code == 201
    ignored: set[str] = set()
    for path, body in recorded["requests"]:
        answer = await running.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        ignored |= set(filter(None, answer.headers.get("x-gateway-ignored-fields", "").split(", ")))
    assert ignored == left_out(recorded["client"])
    assert len(recorded["requests"]) == 2


def test_every_client_of_the_page_was_recorded() -> None:
    page = (RECORDED.parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^\| ([^|`]+?) \| .+ \|$", page.partition("## Fields that are left out")[2])
    names = {json.loads(file.read_text(encoding="utf-8"))["client"] for file in FILES}
    assert names == set(listed) - {"Client", "---"}
