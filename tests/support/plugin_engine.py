"""A vLLM with the plugin installed (plugin/), and what its tests screen against."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.load.embedded import orphans as session
from app.load.embedded.command import arguments, environment
from app.load.embedded.supervisor import socket_home
from app.screen.reference.build import build_reference
from tests.support import tiny_model
from tests.support.engine import START_S, tiny_spec
from tests.support.gateway import KEY

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
SAY = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 5, "temperature": 0}


class PluginEngine:
    """A vLLM with the plugin installed, on a socket. context: tokens."""

    def __init__(self, root: Path, model_dir: Path, gateway_url: str, context: int = tiny_model.MAX_LENGTH) -> None:
        self.root, self.model_dir, self.gateway_url, self.context = root, model_dir, gateway_url, context
        self.cache, self.log = root / "cache", root / "engine.log"
        self.socket = socket_home(root / "run") / "plugin.sock"
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self.site = root / "site"
        source = shutil.copytree(PLUGIN, root / "plugin", ignore=shutil.ignore_patterns("__pycache__", "build"))
        pip: list[str | Path] = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--target",
            self.site,
        ]
        subprocess.run([sys.executable, *pip, source], check=True, capture_output=True)
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://engine", timeout=60.0
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers; with the cache it had, and nothing loaded."""
        spec = tiny_spec(self.model_dir, self.context)
        command = [*arguments(spec, self.socket), "--middleware", "lora_gateway_vllm.closed.OnlyScreened"]
        env = environment(spec, os.environ) | {
            "PYTHONPATH": str(self.site),
            "VLLM_PLUGINS": "lora_gateway",
            "LORA_GATEWAY_URL": self.gateway_url,
            "LORA_GATEWAY_KEY": KEY,
            "LORA_GATEWAY_CACHE": str(self.cache),
            "LORA_GATEWAY_FORGET_S": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            if self._listens() and self.http.get("/health").status_code == 200:
                return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text(errors="replace")[-4000:])

    def _listens(self) -> bool:
        """Asked first: httpx leaks the socket of a connection that nobody takes, and vLLM binds long before it listens."""
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.socket))
            return True
        return False

    def kill(self) -> None:
        """kill -9 its whole family."""
        if self.process is None:
            return
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def family(self) -> list[int]:
        """Its processes."""
        assert self.process is not None
        return session.members(self.process.pid)

    def ask(self, model: str) -> httpx.Response:
        """One chat, asked of the engine itself."""
        return self.http.post("/v1/chat/completions", json={"model": model, **SAY})

    def says(self, model: str) -> Any:
        """What it answers. Fails the test where it refuses."""
        answer = self.ask(model)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    def names(self) -> set[str]:
        """What it lists."""
        return {card["id"] for card in self.http.get("/v1/models").json()["data"]}


@pytest.fixture(scope="module")
def plugin_reference(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model against a base that differs from it a little everywhere."""
    root = tmp_path_factory.mktemp("plugin-reference")
    base = Path(shutil.copytree(tiny_model_dir, root / "base"))
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    moved = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    save_file(moved, base / "model.safetensors", metadata={"format": "pt"})
    build_reference(base, tiny_model_dir, root / "reference")
    return root / "reference"


def files(name: str, folder: Path) -> Any:
    """The multipart parts of an upload."""
    return {
        "name": (None, name.encode()),
        "config": ("c", (folder / "adapter_config.json").read_bytes()),
        "weights": ("w", (folder / "adapter_model.safetensors").read_bytes()),
    }
