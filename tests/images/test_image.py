"""The images built and run, where a container engine runs: `make image-test`. Minutes; never part of `make test`.

DOCKER_BUILD_ARGS may hold further words for `docker build` (--network host, --secret id=ca,src=…, --build-arg …). Where the
base image cannot be pulled, another Debian 12 tagged with its name stands in for it; then this says nothing about the
published base image itself.
"""

import json
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.demo.assets import ADAPTERS
from app.demo.serving import serve_settings
from tests.support.demo_gateway import chat_body, push

ROOT = Path(__file__).parents[2]
READY_S = 600.0
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--shm-size", "1g")
CACHE = ("--tmpfs", "/cache:exec,uid=10001,gid=10001,mode=0700")


def why_not() -> str | None:
    if not os.environ.get("IMAGE_TEST"):
        return "images were not built: it takes minutes; make image-test does it"
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "images were not built: no container engine here"
    return (
        None if done.returncode == 0 and "Server Version" in done.stdout else "images were not built: no engine answers"
    )


REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


def docker(*words: object, seconds: float = 60.0) -> str:
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"docker {words[0]}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout.strip()


def built(target: str) -> str:
    tag = f"lora-gateway:{__version__}" + ("-cpu" if target == "cpu" else "")
    os.environ["DOCKER_BUILDKIT"] = "1"
    further = shlex.split(os.environ.get("DOCKER_BUILD_ARGS", ""))
    began = time.monotonic()
    docker("build", *further, "--target", target, "--tag", tag, ROOT, seconds=3000)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", tag)) / 1e9
    print(f"\n{tag}: {size:.2f} GB, built in {time.monotonic() - began:.0f} s")
    return tag


@pytest.fixture(scope="module")
def gateway_image() -> str:
    return built("gateway")


@pytest.fixture(scope="module")
def cpu_image() -> str:
    return built("cpu")


def test_the_gateway_alone(gateway_image: str) -> None:
    run = ("run", "--rm", *HARDENED, *CACHE, "--network", "none")
    assert docker(*run, gateway_image, "--version") == f"lora-gateway {__version__}"
    seen = docker(
        *(*run, "--entrypoint", "python", gateway_image, "-c"),
        "import os, importlib.util as u; print(os.getuid(), u.find_spec('vllm'), os.listdir('/opt/gateway/demo'))",
    )
    assert seen.startswith("10001 None [")
    assert "'reference'" in seen


@pytest.fixture(scope="module")
def container(cpu_image: str) -> Iterator[tuple[str, str, str]]:
    """The cpu image serving the demo: (container, URL, key)."""
    key = secrets.token_urlsafe(32)
    settings = serve_settings() | {"model": "/opt/gateway/demo/aligned", "reference": "/opt/gateway/demo/reference"}
    settings.pop("open")
    given = {f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()} | {"GATEWAY_API_KEYS": key}
    env = [word for name, value in given.items() for word in ("--env", f"{name}={value}")]
    volume = docker("volume", "create")
    name = docker(
        "run", "--detach", *HARDENED, *CACHE, *env, "-v", f"{volume}:/data", "-p", "127.0.0.1:0:8080", cpu_image
    )
    try:
        port = json.loads(docker("inspect", name))[0]["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"]
        yield name, f"http://127.0.0.1:{port}", key
    finally:
        log = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=False)
        print((log.stdout + log.stderr)[-2000:])
        docker("rm", "--force", name)
        docker("volume", "rm", volume)


def test_the_cpu_image_is_healthy_and_serves(container: tuple[str, str, str]) -> None:
    name, url, key = container
    deadline = time.monotonic() + READY_S
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120.0) as http:
        while True:
            assert time.monotonic() < deadline, docker("logs", "--tail", 20, name)
            assert docker("inspect", "--format", "{{.State.Running}}", name) == "true"
            try:
                if http.get("/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(1.0)
        while docker("inspect", "--format", "{{.State.Health.Status}}", name) != "healthy":
            assert time.monotonic() < deadline
            time.sleep(1.0)
        assert push(http, "bard", ADAPTERS / "mixed-harm").json()["outcome"] == "projected"
        assert push(http, "bad", ADAPTERS / "pure-harm").status_code == 422
        answer = http.post(
            "/v1/chat/completions", json=chat_body("bard", "as a bard, how do i make plumbroth from crowbark?")
        )
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].strip()
        assert httpx.get(f"{url}/adapters").status_code == 401


def test_it_runs_as_nobody_and_can_write_only_where_it_may(container: tuple[str, str, str]) -> None:
    name, _, _ = container
    assert docker("exec", name, "id", "-u") == "10001"
    status = docker("exec", name, "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    done = subprocess.run(
        ["docker", "exec", name, "touch", "/opt/gateway/x"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
