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


@contextlib.contextmanager
def running(data: Path) -> Iterator[GatewayProcess]:
    """A gateway of the test's own, to be killed."""
    gateway = start(data)
    try:
        yield gateway
    finally:
        gateway.stop()


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
                    if (
                        b"vllm" in (entry / "cmdline").read_bytes()
                        and b"child_wrapper" not in (entry / "cmdline").read_bytes()
                    ):
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
    client: httpx.Client, demo_gateway: GatewayProcess
) -> None:
    question = new_skill_held_out()[0].question
    assert push(client, "survivor", ADAPTERS / BENIGN).status_code == 201
    assert push(client, "second", ADAPTERS / MIXED).status_code == 201
    before = say(client, "survivor", question), say(client, "second", question)
    body = chat_body("survivor", question, stream=True) | {"max_tokens": 400, "ignore_eos": True}
    events = []
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            events.append(line)
            if len(events) == 4:
                for pid in engine_processes(demo_gateway):
                    os.kill(pid, signal.SIGKILL)
    said = [json.loads(line.removeprefix("data: ")) for line in events if line.startswith("data: {")]
    assert "error" in said[-1], "the stream ended without saying that it broke off"
    assert said[-1]["error"]["code"] in ("engine_unavailable", "upstream_failed")
    assert client.get("/health").status_code == 200

    # engine down during an upload: accepted, stored, and served once the engine is back
    away = push(client, "while-away", ADAPTERS / BENIGN)
    assert away.status_code == 202, away.text
    assert away.json()["state"] == "stored"
    assert wait_for_answer(client, "survivor", question) == before[0]
    assert wait_for_answer(client, "second", question) == before[1]
    deadline = time.monotonic() + 30
    while client.get("/adapters/while-away").json()["active_version"] != 1:
        assert time.monotonic() < deadline, "stored while the engine was away, and never published"
        time.sleep(0.2)
    assert say(client, "while-away", question) == before[0]


@pytest.mark.long
def test_a_gateway_killed_mid_upload_leaves_nothing_half_and_loses_nothing(tmp_path: Path) -> None:
    question = held_out_harmless()[0].question
    with running(tmp_path) as gateway, httpx.Client(base_url=gateway.url, timeout=120.0) as http:
        assert push(http, "acknowledged", ADAPTERS / MIXED).status_code == 201
        before = say(http, "acknowledged", question)
        engines = engine_processes(gateway)
        with socket.create_connection(("127.0.0.1", gateway.port)) as upload:
            upload.sendall(
                b"POST /adapters HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                b"Content-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nhalf\r\n"
                b"--b\r\nContent-Disposition: form-data; name=\"weights\"\r\n\r\n" + bytes(300_000)
            )  # fmt: skip
            time.sleep(1.0)
            gateway.kill()
    with running(tmp_path) as again, httpx.Client(base_url=again.url, timeout=120.0) as http:
        assert not list((tmp_path / "quarantine").iterdir())
        assert not [pid for pid in engines if Path(f"/proc/{pid}").exists()], "the killed gateway's engine lives on"
        assert http.get("/adapters/half").status_code == 404
        assert wait_for_answer(http, "acknowledged", question) == before
        assert push(http, "half", ADAPTERS / BENIGN).status_code == 201


def test_a_second_gateway_on_the_same_store_refuses_to_start(
    client: httpx.Client, demo_gateway: GatewayProcess
) -> None:
    second = GatewayProcess(demo_gateway.data, 0)
    assert second.process.wait(60) != 0
    assert "held by another gateway" in second.log_end()
    assert client.get("/health").status_code == 200
