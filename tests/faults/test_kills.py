"""The engine away, the engine killed, the gateway killed: recovered, and nothing acknowledged is lost."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.demo.assets import ADAPTERS, BENIGN, MIXED
from app.demo.child_gateway import GatewayProcess
from app.demo.questions import held_out_harmless, new_skill_held_out
from tests.support.demo_gateway import chat_body, push, say, start

pytestmark = [pytest.mark.engine, pytest.mark.slow]

RECOVER_S = 240.0
"""Seconds within which a killed engine must serve again: start (about a minute on two busy cores), reload, backoff."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def gateways() -> Iterator[list[GatewayProcess]]:
    """Gateways these tests start, the living one last; all are ended afterwards."""
    started: list[GatewayProcess] = []
    yield started
    for gateway in started:
        gateway.stop()


@pytest.fixture
def http(gateways: list[GatewayProcess], data: Path) -> Iterator[httpx.Client]:
    """A client of the living gateway, started on `data` where none lives."""
    if not gateways or gateways[-1].process.poll() is not None:
        gateways.append(start(data))
    with httpx.Client(base_url=gateways[-1].url, timeout=120.0) as client:
        yield client


def engine_processes(gateway: GatewayProcess) -> list[int]:
    """Process ids under the gateway that run vLLM."""
    found, queue = [], [gateway.process.pid]
    while queue:
        parent = queue.pop()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    queue.append(int(entry.name))
                    if b"vllm" in (entry / "cmdline").read_bytes() and b"leash" not in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
    return found


def wait_for_answer(http: httpx.Client, model: str, question: str) -> str:
    """The first 200; until then only 503 with Retry-After is allowed."""
    deadline = time.monotonic() + RECOVER_S
    while time.monotonic() < deadline:
        answer = http.post("/v1/chat/completions", json=chat_body(model, question))
        if answer.status_code == 200:
            return str(answer.json()["choices"][0]["message"]["content"]).strip()
        assert answer.status_code in (502, 503), answer.text
        assert "retry-after" in answer.headers
        time.sleep(0.5)
    raise AssertionError(f"{model} was not served again within {RECOVER_S:.0f} s")


def test_an_engine_killed_mid_chat_is_told_and_comes_back_with_every_adapter(
    http: httpx.Client, gateways: list[GatewayProcess]
) -> None:
    question = new_skill_held_out()[0].question
    assert push(http, "survivor", ADAPTERS / BENIGN).status_code == 201
    assert push(http, "second", ADAPTERS / MIXED).status_code == 201
    before = say(http, "survivor", question), say(http, "second", question)
    body = chat_body("survivor", question, stream=True) | {"max_tokens": 400, "ignore_eos": True}
    events = []
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            events.append(line)
            if len(events) == 4:
                for pid in engine_processes(gateways[-1]):
                    os.kill(pid, signal.SIGKILL)
    said = [json.loads(line.removeprefix("data: ")) for line in events if line.startswith("data: {")]
    assert "error" in said[-1], "the stream ended without saying that it broke off"
    assert said[-1]["error"]["code"] in ("engine_unavailable", "upstream_failed")
    assert http.get("/health").status_code == 200

    # engine down during an upload: accepted, stored, and served once the engine is back
    away = push(http, "while-away", ADAPTERS / BENIGN)
    assert away.status_code == 202, away.text
    assert away.json()["state"] == "stored"
    assert wait_for_answer(http, "survivor", question) == before[0]
    assert wait_for_answer(http, "second", question) == before[1]
    deadline = time.monotonic() + 30
    while http.get("/adapters/while-away").json()["active_version"] != 1:
        assert time.monotonic() < deadline, "stored while the engine was away, and never published"
        time.sleep(0.2)
    assert say(http, "while-away", question) == before[0]


@pytest.mark.long
def test_a_gateway_killed_mid_upload_leaves_nothing_half_and_loses_nothing(
    http: httpx.Client, gateways: list[GatewayProcess], data: Path
) -> None:
    question = held_out_harmless()[0].question
    assert push(http, "acknowledged", ADAPTERS / MIXED).status_code == 201
    before = say(http, "acknowledged", question)
    gateway = gateways[-1]
    engines = engine_processes(gateway)
    with socket.create_connection(("127.0.0.1", gateway.port)) as upload:
        upload.sendall(
            b"POST /adapters HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nhalf\r\n"
            b"--b\r\nContent-Disposition: form-data; name=\"weights\"\r\n\r\n" + bytes(300_000)
        )  # fmt: skip
        time.sleep(1.0)
        gateway.kill()
    again = start(data)
    gateways.append(again)
    assert not list((data / "quarantine").iterdir())
    assert not [pid for pid in engines if Path(f"/proc/{pid}").exists()], "the killed gateway's engine lives on"
    with httpx.Client(base_url=again.url, timeout=120.0) as after:
        assert after.get("/adapters/half").status_code == 404
        assert wait_for_answer(after, "acknowledged", question) == before
        assert push(after, "half", ADAPTERS / BENIGN).status_code == 201


def test_a_second_gateway_on_the_same_store_refuses_to_start(http: httpx.Client, data: Path) -> None:
    second = GatewayProcess(data, 0)
    assert second.process.wait(60) != 0
    assert "held by another gateway" in second.log_end()
    assert http.get("/health").status_code == 200
