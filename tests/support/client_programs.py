"""Programs of other people's clients, in tests/clients: two turns, and a form with a tool, by each of them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.clients import HOME, node_program, python_with

TURNS: Final = "turns"
TOOLS: Final = "tools"
"""Folders of the programs, and the ends of their names; parts of what is recorded."""

REASONING: Final = "reasoning"
"""Part of what is recorded: two turns with a model that reasons."""


@dataclass(frozen=True)
class Client:
    """One client. environment: as of clients.py; None: the tests' own. stem: beginning of its programs' names. replaced:
    text in them → what stands for it."""

    environment: str | None
    stem: str
    node: bool = False
    replaced: tuple[tuple[str, str], ...] = ()

    def command(self, kind: str, folder: Path) -> list[str | Path]:
        """The command that runs a program; for Node in `folder`, which holds none yet. Skips if it does not install."""
        program = HOME / kind / f"{self.stem}_{kind}.{'mjs' if self.node else 'py'}"
        if not self.node:
            return [Path(sys.executable) if self.environment is None else python_with(self.environment), program]
        text = program.read_text(encoding="utf-8")
        for word, other in self.replaced:
            text = text.replace(word, other)
        assert self.environment is not None
        return node_program(self.environment, text, folder)


CLIENTS: Final = {
    "openai for Python": Client(None, "openai"),
    "openai for Node": Client("openai-node", "openai_node", node=True),
    "Anthropic": Client("anthropic", "anthropic"),
    "OpenAI Agents SDK": Client("openai-agents", "openai_agents"),
    "pydantic-ai": Client("pydantic-ai", "pydantic_ai"),
    "instructor": Client("instructor", "instructor"),
    "LangChain": Client("langchain-openai", "langchain"),
    "LangChain for Node": Client("langchain-js", "langchain_js", node=True),
    "LlamaIndex": Client("llama-index", "llama_index"),
    "LiteLLM": Client("litellm", "litellm"),
    "Vercel AI SDK": Client("ai-sdk", "ai_sdk", node=True, replaced=(("PROVIDER", "compatible"),)),
    "Vercel AI SDK for OpenAI": Client("ai-sdk", "ai_sdk", node=True, replaced=(("PROVIDER", "openai"),)),
}
"""Clients as the page calls them. llm has no programs: it is a command."""


def llm(url: str, model: str, folder: Path) -> list[str | Path]:
    """The command llm, which knows `model` of the gateway at `url` as `mine`; for `folder` as its home."""
    models = f"- model_id: mine\n  model_name: {model}\n  api_base: {url}/v1\n  supports_schema: true\n"
    (folder / "extra-openai-models.yaml").write_text(models)
    return [python_with("llm"), "-m", "llm", "-o", "temperature", "0", "--no-stream"]


def llm_env(folder: Path) -> dict[str, str]:
    """Environment of llm."""
    return {"LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "unused"}
