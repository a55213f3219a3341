"""Two turns by other people's clients on the real engine: an answer goes back as history in the client's own form.

Run by `make clients`, which also says which clients do not install here. The fields that the gateway leaves out of these
requests are the table of docs/clients.md. `CLIENTS_RECORD=1 make clients` writes the requests anew into
tests/clients/recorded, from where test_recorded.py sends them in every run of the tests.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from app.demo.assets import ADAPTERS, BENIGN
from app.demo.child_gateway import GatewayProcess
from app.demo.questions import new_skill_held_out
from tests.support.clients import HOME, RECORDED, node_program, python_with, run
from tests.support.demo_gateway import chat_body, push
from tests.support.recorder import Recorder, recording

pytestmark = [pytest.mark.engine, pytest.mark.long]
MODEL: Final = "somebody"
FIRST, SECOND = (one.question for one in new_skill_held_out()[:2])
TURNS: Final = HOME / "turns"
PAGE: Final = (HOME.parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
LEFT_OUT: Final = dict(re.findall(r"(?m)^\| ([^|`]+?) \| (.+?) \|$", PAGE.partition("## Fields that are left out")[2]))
"""Client → its cell in the page's table."""


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


def left_out(name: str) -> set[str]:
    """Fields that the page says are left out of this client's requests."""
    return set(re.findall(r"`([^`]+)`", LEFT_OUT[name]))


def check(name: str, recorder: Recorder) -> None:
    """Compare what was left out with the page; keep the requests if that was asked for."""
    assert recorder.ignored == left_out(name)
    if os.environ.get("CLIENTS_RECORD"):
        text = json.dumps({"client": name, "requests": recorder.seen}, indent=1, ensure_ascii=False)
        (RECORDED / f"{name.lower().replace(' ', '-')}.json").write_text(f"{text}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "environment", "program"),
    [
        ("openai for Python", None, "openai_turns.py"),
        ("Anthropic", "anthropic", "anthropic_turns.py"),
        ("LangChain", "langchain-openai", "langchain_turns.py"),
        ("LlamaIndex", "llama-index", "llama_index_turns.py"),
        ("LiteLLM", "litellm", "litellm_turns.py"),
    ],
)
def test_two_turns_in_python(
    expected: list[str], recorder: Recorder, tmp_path: Path, name: str, environment: str | None, program: str
) -> None:
    python = Path(sys.executable) if environment is None else python_with(environment)
    said = run(python, TURNS / program, recorder.url, MODEL, FIRST, SECOND, cwd=tmp_path)
    assert stripped(json.loads(said)) == stripped(expected)
    check(name, recorder)


@pytest.mark.parametrize(
    ("name", "environment", "program"),
    [
        ("openai for Node", "openai-node", "openai_node_turns.mjs"),
        ("Vercel AI SDK", "ai-sdk", "ai_sdk_turns.mjs"),
    ],
)
def test_two_turns_in_node(
    expected: list[str], recorder: Recorder, tmp_path: Path, name: str, environment: str, program: str
) -> None:
    command = node_program(environment, (TURNS / program).read_text(encoding="utf-8"), tmp_path)
    said = run(*command, recorder.url, MODEL, FIRST, SECOND, cwd=tmp_path)
    assert stripped(json.loads(said)) == stripped(expected)
    check(name, recorder)


def test_two_turns_of_llm(expected: list[str], recorder: Recorder, tmp_path: Path) -> None:
    models = f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {recorder.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    env = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"}
    options = ["-o", "temperature", "0", "-o", "max_tokens", "32", "--no-stream"]
    python = python_with("llm")
    said = [
        run(python, "-m", "llm", *asked, *options, cwd=tmp_path, **env)
        for asked in (["-m", "mine", FIRST], ["-c", SECOND])
    ]
    assert stripped(said) == stripped(expected)
    check("llm", recorder)
