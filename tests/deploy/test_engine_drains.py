"""A real engine, told to end in the middle of an answer, with the flag of deploy/kubernetes: the answer goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.demo.assets import ALIGNED
from app.load.embedded.command import ENTRY, FIXED, UNCOMPILED
from tests.deploy.test_kubernetes import container
from tests.support.engine import START_S
from tests.support.prometheus import free_port

pytestmark = [pytest.mark.engine, pytest.mark.long]
TOKENS = 460
"""Of an answer that is certainly not over when the signal comes; the demo's model has a context of 512."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """vLLM's CPU build with the demo's model, and its URL."""
    (flag,) = [one for one in container("StatefulSet", "engine")["args"] if one.startswith("--shutdown-timeout=")]
    port = free_port()
    served = [f"--model={ALIGNED}", "--served-model-name=demo", "--dtype=float32", "--max-model-len=512"]
    command = [sys.executable, "-m", ENTRY, "--host=127.0.0.1", f"--port={port}", *served, "--enforce-eager", flag]
    env = {**os.environ, **FIXED, **UNCOMPILED, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = tmp_path / "engine.log"
    with log.open("wb") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
            while not healthy(url):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            yield process, url
        finally:
            process.kill()


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_stream_goes_on_to_its_end(engine: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = engine
    asked = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS}
    body = {**asked, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    chunks = []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120.0) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line.removeprefix("data: ")))
                if len(chunks) == 20:
                    process.send_signal(signal.SIGTERM)
    assert not [chunk for chunk in chunks if "error" in chunk]
    *_, last, usage = chunks  # a busy engine puts several tokens into one chunk
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == TOKENS
    assert process.wait(120) == 0
