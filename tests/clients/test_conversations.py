"""Two turns by other people's clients on the real engine: an answer goes back as history in the client's own form.

Run by `make clients`, which also says which clients do not install here. The fields that the gateway leaves out of these
requests are the table of docs/clients.md. `CLIENTS_RECORD=1 make clients` writes the requests anew into
tests/clients/recorded, from where test_recorded.py sends them in every run of the tests. Forms, tools and reasoning:
test_played_model.py.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from app.demo.assets import ADAPTERS, BENIGN
from app.demo.child_gateway import GatewayProcess
from app.demo.questions import new_skill_held_out
from tests.support.client_programs import CLIENTS, TOOLS, TURNS, llm, llm_env
from tests.support.clients import HOME, RECORDED, run
from tests.support.demo_gateway import chat_body, push
from tests.support.recorder import Recorder, recording

pytestmark = [pytest.mark.engine, pytest.mark.long]
MODEL: Final = "somebody"
FIRST, SECOND = (one.question for one in new_skill_held_out()[:2])
PAGE: Final = (HOME.parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
TABLE: Final = PAGE.partition("## Fields that are left out")[2]
LEFT_OUT: Final = {row[0]: row[1:] for row in re.findall(r"(?m)^\| ([^|`]+?) \| (.+?) \| (.+?) \|$", TABLE)[2:]}
"""Client → its cells in the page's table: of the two turns, and of the form and the tool."""


@pytest.fixture
def expected(client: httpx.Client) -> list[str]:
    """Both answers, by requests written by hand."""
    assert push(client, MODEL, ADAPTERS / BENIGN).status_code in (200, 201)
    messages = [{"role": "user", "content": FIRST}]
    answers = []
    for question in (SECOND, ""):
        answer = client.post("/v1/chat/completions", json=chat_body(MODEL, "") | {"messages": messages})
        assert answer.status_code == 200, answer.text
        answers.append(str(answer.json()["choices"][0]["message"]["content"]))
        messages += [{"role": "assistant", "content": answers[-1]}, {"role": "user", "content": question}]
    return answers


@pytest.fixture
def recorder(demo_gateway: GatewayProcess) -> Iterator[Recorder]:
    with recording(demo_gateway.url) as made:
        yield made


def stripped(answers: list[str]) -> list[str]:
    return [answer.strip() for answer in answers]


def left_out(name: str, kind: str) -> set[str]:
    """Fields that the page says are left out of this client's requests."""
    return set(re.findall(r"`([^`]+)`", LEFT_OUT[name][kind == TOOLS]))


def check(name: str, kind: str, recorder: Recorder) -> None:
    """Compare what was left out with the page; keep the requests if that was asked for."""
    if os.environ.get("CLIENTS_RECORD"):
        file = RECORDED / f"{name.lower().replace(' ', '-')}.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"client": name}
        text = json.dumps(before | {kind: recorder.seen}, indent=1, ensure_ascii=False)
        file.write_text(f"{text}\n", encoding="utf-8")
    assert recorder.ignored == left_out(name, kind)


@pytest.mark.parametrize("name", CLIENTS)
def test_two_turns(expected: list[str], recorder: Recorder, tmp_path: Path, name: str) -> None:
    command = CLIENTS[name].command(TURNS, tmp_path)
    said = run(*command, recorder.url, MODEL, FIRST, SECOND, cwd=tmp_path)
    assert stripped(json.loads(said)) == stripped(expected)
    check(name, TURNS, recorder)


def test_two_turns_of_llm(expected: list[str], recorder: Recorder, tmp_path: Path) -> None:
    said = [
        run(*llm(recorder.url, MODEL, tmp_path), *asked, "-o", "max_tokens", "32", cwd=tmp_path, **llm_env(tmp_path))
        for asked in (["-m", "mine", FIRST], ["-c", SECOND])
    ]
    assert stripped(said) == stripped(expected)
    check("llm", TURNS, recorder)
