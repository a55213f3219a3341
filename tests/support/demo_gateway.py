"""A real gateway on a real engine, serving the demo: one for the whole suite, and ones of their own for tests that kill."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.demo.assets import ADAPTERS
from app.demo.child_gateway import GatewayProcess

CAP_MIB = 2
"""MiB of weights the test gateways take; the demo's adapters are smaller, and a body over it is quickly made."""

PROMPT_TOKENS = 32


def start(data: Path, *args: str) -> GatewayProcess:
    """A gateway over the demo, ready."""
    gateway = GatewayProcess(data, 0, "--max-weights-mib", str(CAP_MIB), "--log", "json", *args)
    gateway.wait_ready()
    return gateway


@pytest.fixture(scope="session")
def demo_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The suite's gateway. Tests use adapter names of their own and kill nothing."""
    gateway = start(tmp_path_factory.mktemp("gateway"))
    yield gateway
    gateway.stop()


@pytest.fixture
def client(demo_gateway: GatewayProcess) -> Iterator[httpx.Client]:
    """An HTTP client of it."""
    with httpx.Client(base_url=demo_gateway.url, timeout=120.0) as http:
        yield http


def parts(name: str, folder: Path) -> Any:
    """The multipart parts of POST /adapters."""
    return {
        "name": (None, name.encode()),
        "config": ("adapter_config.json", (folder / "adapter_config.json").read_bytes()),
        "weights": ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes()),
    }


def push(http: httpx.Client, name: str, folder: Path, **query: Any) -> httpx.Response:
    """POST /adapters with the adapter in `folder`."""
    return http.post("/adapters", files=parts(name, folder), params=query)


def say(http: httpx.Client, model: str, question: str) -> str:
    """One greedy answer."""
    answer = http.post("/v1/chat/completions", json=chat_body(model, question))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def chat_body(model: str, question: str, **more: Any) -> dict[str, Any]:
    """A greedy chat request."""
    message = {"role": "user", "content": question}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": PROMPT_TOKENS, **more}


def other_bytes(source: str, target: Path, scale: float = 0.5) -> Path:
    """A demo adapter with its B halved: other bytes, another ΔW, still a fine adapter."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(ADAPTERS / source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    scaled = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    save_file(scaled, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target
