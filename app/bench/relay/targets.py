"""Targets of the benchmark: the stand-in itself, this gateway, and other common proxies, started as their users do."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from app.bench.relay.processes import family

ENVIRONMENTS: Final = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lora-gateway" / "bench"
"""Directory searched for peers beside PATH: `<name>/bin/<name>`, each in a separate environment, so that their
requirements do not conflict with ours. To be made by hand: `python3 -m venv D/litellm && D/litellm/bin/pip install
'litellm[proxy]'`."""

MODEL: Final = "bench"
KEY: Final = "sk-bench-nobody-else"
START_S: Final = 180.0
"""Seconds a target may take to answer: litellm imports for half a minute on a busy machine."""

STOP_S: Final = 10.0
LOG_CHARS: Final = 800


class Missing(Exception):
    """Error: a target cannot be measured here, with the reason."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers at `url`, run by the process `pid` and its children."""

    name: str
    url: str
    pid: int
    model: str
    version: str


@contextmanager
def stand_in(scratch: Path, gap_s: float) -> Iterator[Target]:
    """Run the stand-in engine."""
    port = free_port()
    command = [sys.executable, "-m", "app.bench.relay.stand_in", str(port), MODEL, str(gap_s)]
    with running("direct", command, port, scratch, {}) as pid:
        yield Target("direct", f"http://127.0.0.1:{port}", pid, MODEL, "the stand-in itself")


@contextmanager
def gateway(scratch: Path, engine: str) -> Iterator[Target]:
    """Run this gateway over the demo's reference, with a key and one adapter screened and published."""
    from app import __version__
    from app.demo.assets import ADAPTERS, BENIGN

    port, data = free_port(), scratch / "gateway-data"
    command = [sys.executable, "-m", "app", "serve", "--demo", "--port", str(port), "--data", str(data)]
    command += ["--engine-url", engine, "--served-model-name", "served", "--min-free-disk-mib", "0", "--api-keys", KEY]
    with running("gateway", command, port, scratch, {}, "/ready") as pid:
        url = f"http://127.0.0.1:{port}"
        files: Any = {"name": (None, b"adapter")}
        for part, name in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")):
            files[part] = (name, (ADAPTERS / BENIGN / name).read_bytes())
        sent = httpx.post(f"{url}/adapters", files=files, headers={"authorization": f"Bearer {KEY}"}, timeout=START_S)
        sent.raise_for_status()
        yield Target("gateway", url, pid, "adapter", __version__)


@contextmanager
def nginx(scratch: Path, engine: str) -> Iterator[Target]:
    """Run nginx with one worker, keep-alive connections and no buffering: the cost of a relay in C."""
    binary = _find("nginx", "apt install nginx-light")
    port, home = free_port(), scratch / "nginx"
    home.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {home}/pid; error_log {home}/log;
        events {{ worker_connections 4096; }}
        http {{ access_log off; {temporary}
          upstream engine {{ server {engine.removeprefix("http://")}; keepalive 512; keepalive_requests 100000000; }}
          server {{ listen 127.0.0.1:{port}; keepalive_requests 100000000; location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; }} }} }}"""
    )
    output = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False).stderr
    with running(
        "nginx", [binary, "-p", str(home), "-c", str(home / "nginx.conf")], port, scratch, {}, "/v1/models"
    ) as pid:
        yield Target("nginx", f"http://127.0.0.1:{port}", pid, MODEL, output.strip().rpartition("/")[2])


@contextmanager
def litellm(scratch: Path, engine: str) -> Iterator[Target]:
    """Run litellm's proxy, one worker, with the key as its master key and no database."""
    binary = _find("litellm", f"python3 -m venv {ENVIRONMENTS}/litellm, then pip install 'litellm[proxy]' there")
    port, config = free_port(), scratch / "litellm.yaml"
    entry = {"model": f"openai/{MODEL}", "api_base": f"{engine}/v1", "api_key": KEY}
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": entry}],
                "general_settings": {"master_key": KEY},
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    command = [binary, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with running("litellm", command, port, scratch, env, "/health/liveliness") as pid:
        yield Target("litellm", f"http://127.0.0.1:{port}", pid, MODEL, _version(binary, "litellm"))


@contextmanager
def vllm_router(scratch: Path, engine: str) -> Iterator[Target]:
    """Run vLLM's router, in Rust, over one worker."""
    binary = _find("vllm-router", f"python3 -m venv {ENVIRONMENTS}/vllm-router, then pip install vllm-router there")
    port = free_port()
    command = [binary, "--worker-urls", engine, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--policy", "round_robin", "--prometheus-port", str(free_port())]
    with running("vllm-router", command, port, scratch, {}, "/health") as pid:
        yield Target("vllm-router", f"http://127.0.0.1:{port}", pid, MODEL, _version(binary, "vllm-router"))


PEERS: Final[Mapping[str, Callable[[Path, str], Any]]] = {
    "gateway": gateway,
    "nginx": nginx,
    "vllm-router": vllm_router,
    "litellm": litellm,
}
"""Name → function that runs the target in front of an engine's URL. Raises Missing."""


def _find(name: str, how: str) -> str:
    own = ENVIRONMENTS / name / "bin" / name
    found = str(own) if own.exists() else shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(f"not installed ({how})")
    return found


def _version(binary: str, package: str) -> str:
    """Return the version of a package in the environment of `binary`."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    python = Path(binary).parent / "python"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


@contextmanager
def running(
    name: str, command: list[str], port: int, scratch: Path, env: Mapping[str, str], ready: str = "/health"
) -> Iterator[int]:
    """Run a process group that answers on `port`; end it with all its children. Raises Missing with the log's end."""
    log = scratch / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **env, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Missing(f"did not start: {log.read_text(errors='replace')[-LOG_CHARS:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        children = family(process.pid)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in children[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """Return a port on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
