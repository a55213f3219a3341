"""Other people's clients with a model that reasons, keeps to a schema and calls a tool, played by the simulated engine.

Run by `make clients`; what the clients were seen to send is sent again by test_recorded.py in every run of the tests. The
real engine does the same for requests written by hand: tests/demo/test_structured_answers.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from app.demo.tour import PRICE_OF
from tests.clients.test_conversations import MODEL, PAGE, check
from tests.support.client_programs import CLIENTS, REASONING, TOOLS, TURNS, llm, llm_env
from tests.support.clients import run
from tests.support.gateway import OpenHouse, Running, form
from tests.support.recorder import Recorder, recording
from tests.support.served import on_a_port

pytestmark = pytest.mark.long
THOUGHT: Final = "a thought of the model's"
PRICE: Final = {"dish": "suncake", "coins": 7}
ANSWER: Final = f"words of {MODEL}"
KEEP_IT: Final = PAGE.partition("keep it to themselves: ")[2].partition(".")[0].replace("\n", " ").split(", ")
"""Clients of which the page says that they send no reasoning back."""


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse) -> AsyncIterator[Running]:
    async with open_gateway(open=True, api_keys="") as made:
        assert (await made.http.post("/adapters", files=form(MODEL))).status_code == 201
        yield made


@pytest_asyncio.fixture
async def recorder(running: Running) -> AsyncIterator[Recorder]:
    async with on_a_port(running) as port:
        with recording(f"http://127.0.0.1:{port}") as made:
            yield made


def test_those_that_keep_reasoning_are_clients_of_the_page() -> None:
    assert set(KEEP_IT) < set(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
async def test_reasoning_goes_back_to_the_engine_or_stays_with_the_client(
    running: Running, recorder: Recorder, tmp_path: Path, name: str
) -> None:
    running.simulator.reasons = THOUGHT
    command = await asyncio.to_thread(CLIENTS[name].command, TURNS, tmp_path)
    said: list[Any] = json.loads(
        await asyncio.to_thread(run, *command, recorder.url, MODEL, "first", "second", cwd=tmp_path)
    )
    assert len(said) == 2
    assert all(said)
    assert (THOUGHT in json.dumps(running.simulator.seen[-1])) == (name not in KEEP_IT)
    check(name, REASONING, recorder)


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_schema_is_kept_to_and_a_tool_called_and_answered(
    running: Running, recorder: Recorder, tmp_path: Path, name: str
) -> None:
    running.simulator.form = PRICE
    command = await asyncio.to_thread(CLIENTS[name].command, TOOLS, tmp_path)
    said = json.loads(await asyncio.to_thread(run, *command, recorder.url, MODEL, "how much?", cwd=tmp_path))
    assert said["form"] == said["arguments"] == PRICE
    if name != "instructor":  # it has no conversations with tools
        assert said["after"]
        assert "coins" in json.dumps(running.simulator.seen[-1]), "the tool's result is in the history"
    check(name, TOOLS, recorder)


async def test_a_schema_of_llm(running: Running, recorder: Recorder, tmp_path: Path) -> None:
    running.simulator.form = PRICE
    command = await asyncio.to_thread(llm, recorder.url, MODEL, tmp_path)
    asked = ("-m", "mine", "--schema", json.dumps(PRICE_OF), "how much?")
    said = await asyncio.to_thread(run, *command, *asked, cwd=tmp_path, **llm_env(tmp_path))
    assert json.loads(said) == PRICE
    check("llm", TOOLS, recorder)
