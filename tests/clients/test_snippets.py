"""The snippets of docs/clients.md, as they stand there, against a gateway on a port, over the simulated engine."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.support.clients import HOME, node_program, python_with, run
from tests.support.gateway import KEY, OpenHouse, form
from tests.support.served import on_a_port

PAGE: Final = (HOME.parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
ADDRESS: Final = "http://localhost:8080"
NAME: Final = "my-bard"
SECTIONS: Final = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))
"""Heading → text below it."""

Command = list[str | Path]


def snippet(heading: str) -> str:
    """The one block of code under a heading."""
    (code,) = re.findall(r"(?ms)^```\w+\n(.*?)^```", SECTIONS[heading])
    assert isinstance(code, str)
    return code


def in_python(environment: str | None) -> Callable[[str, Path], Command]:
    return lambda code, _: [sys.executable if environment is None else python_with(environment), "-c", code]


def in_node(environment: str) -> Callable[[str, Path], Command]:
    return lambda code, folder: node_program(environment, code, folder)


def in_a_shell(code: str, _: Path) -> Command:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return ["sh", "-c", code]


RUN: Final = {
    "openai for Python": in_python(None),
    "openai for Node": in_node("openai-node"),
    "curl": in_a_shell,
    "Anthropic": in_python("anthropic"),
    "OpenAI Agents SDK": in_python("openai-agents"),
    "pydantic-ai": in_python("pydantic-ai"),
    "instructor": in_python("instructor"),
    "LangChain": in_python("langchain-openai"),
    "LangChain for Node": in_node("langchain-js"),
    "LlamaIndex": in_python("llama-index"),
    "LiteLLM": in_python("litellm"),
    "Vercel AI SDK": in_node("ai-sdk"),
    "Vercel AI SDK for OpenAI": in_node("ai-sdk"),
}
INSTALLED: Final = {"openai for Python", "curl"}


@pytest_asyncio.fixture
async def port(open_gateway: OpenHouse) -> AsyncIterator[int]:
    """Address of a gateway that serves the page's adapter."""
    async with open_gateway() as running, on_a_port(running) as found:
        assert (await running.http.post("/adapters", files=form(NAME))).status_code == 201
        yield found


@pytest.mark.parametrize(
    "heading", [pytest.param(one, marks=[] if one in INSTALLED else [pytest.mark.long]) for one in RUN]
)
async def test_a_snippet_prints_the_adapters_answer(port: int, tmp_path: Path, heading: str) -> None:
    code = snippet(heading)
    assert {ADDRESS, "YOUR-KEY", NAME} <= set(re.findall(rf"{ADDRESS}|YOUR-KEY|{NAME}", code))
    code = code.replace(ADDRESS, f"http://127.0.0.1:{port}").replace("YOUR-KEY", KEY)
    command = await asyncio.to_thread(RUN[heading], code, tmp_path)
    said = await asyncio.to_thread(run, *command, cwd=tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert f"words of {NAME}" in said


def test_every_snippet_is_run_or_says_that_it_is_not() -> None:
    with_code = {heading for heading, text in SECTIONS.items() if "```" in text}
    untested = {heading for heading in with_code if SECTIONS[heading].strip().startswith("*Untested.*")}
    assert with_code == RUN.keys() | untested
    assert not RUN.keys() & untested
