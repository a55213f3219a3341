"""Uploads that must be refused, through the real door: a clear code, nothing served, nothing left behind."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save

from app.demo.assets import ADAPTERS, BENIGN
from app.demo.child_gateway import GatewayProcess
from tests.support.demo_gateway import CAP_MIB, parts

pytestmark = pytest.mark.engine
Parts = dict[str, Any]


def weights_of(form: Parts) -> bytes:
    data = form["weights"][1]
    assert isinstance(data, bytes)
    return data


def truncated(form: Parts) -> None:
    form["weights"] = ("w", weights_of(form)[:-100])


def a_pickle(form: Parts) -> None:
    form["weights"] = ("adapter_model.safetensors", b"PK\x03\x04archive/data.pkl" + bytes(1000))


def not_a_number(form: Parts) -> None:
    tensors = load(weights_of(form))
    tensors[min(tensors)][0, 0] = float("nan")
    form["weights"] = ("w", save(tensors))


def infinite_after_scaling(form: Parts) -> None:
    tensors = load(weights_of(form))
    name = min(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = 3e38
    form["weights"] = ("w", save(tensors))
    config = json.loads(form["config"][1])
    form["config"] = ("c", json.dumps(config | {"lora_alpha": config["r"] * 4}).encode())


def another_base(form: Parts) -> None:
    wider = {
        name: torch.nn.functional.pad(tensor, (0, 32) if ".lora_A." in name else (0, 0, 0, 32)).contiguous()
        for name, tensor in load(weights_of(form)).items()
    }
    form["weights"] = ("w", save(wider))


def half_a_pair(form: Parts) -> None:
    tensors = load(weights_of(form))
    del tensors[min(name for name in tensors if ".lora_A." in name)]
    form["weights"] = ("w", save(tensors))


def a_module_nobody_knows(form: Parts) -> None:
    tensors = load(weights_of(form))
    first = min(tensors)
    form["weights"] = ("w", save({name.replace("layers.0.", "layers.99."): tensor for name, tensor in tensors.items()}))
    assert first in tensors


def a_path_as_name(form: Parts) -> None:
    form["name"] = (None, b"../../etc/passwd")


def too_large(form: Parts) -> None:
    form["weights"] = ("w", bytes((CAP_MIB << 20) + 1))


def dora(form: Parts) -> None:
    form["config"] = ("c", json.dumps(json.loads(form["config"][1]) | {"use_dora": True}).encode())


CASES: list[tuple[Callable[[Parts], None], int, str]] = [
    (truncated, 400, "bad_safetensors"),
    (a_pickle, 400, "bad_safetensors"),
    (not_a_number, 422, "not_finite"),
    (infinite_after_scaling, 422, "not_finite"),
    (another_base, 422, "wrong_shape"),
    (half_a_pair, 422, "unpaired_tensor"),
    (a_module_nobody_knows, 422, "unknown_module"),
    (a_path_as_name, 400, "bad_name"),
    (too_large, 413, "too_large"),
    (dora, 422, "unsupported_config"),
]


@pytest.mark.parametrize(("spoil", "status", "code"), CASES, ids=[case[0].__name__ for case in CASES])
@pytest.mark.hostile
def test_it_is_refused_with_its_code_and_nothing_stays(
    client: httpx.Client, demo_gateway: GatewayProcess, spoil: Callable[[Parts], None], status: int, code: str
) -> None:
    name = f"bad-{spoil.__name__.replace('_', '-')}"
    form: Parts = dict(parts(name, ADAPTERS / BENIGN))
    spoil(form)
    data = demo_gateway.log.parent
    before = set((data / "artefacts").iterdir())
    answer = client.post("/adapters", files=form)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert len(answer.json()["error"]["message"]) > 30
    assert not list((data / "quarantine").iterdir())
    assert set((data / "artefacts").iterdir()) == before
    assert name not in [model["id"] for model in client.get("/v1/models").json()["data"]]
    asked = client.post("/v1/chat/completions", json={"model": name, "messages": [{"role": "user", "content": "x"}]})
    assert asked.status_code == 404
    assert f'code="{code}"' in client.get("/metrics").text


HEADERS = {
    "announced over the cap": (b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1073741824", b"413"),
    "compressed": (
        b"Content-Type: multipart/form-data; boundary=x\r\nContent-Encoding: gzip\r\nContent-Length: 9999999",
        b"415",
    ),
    "no form": (b"Content-Type: text/plain\r\nTransfer-Encoding: chunked", b"400"),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.hostile("U01", "U10")
def test_what_the_headers_give_away_is_refused_before_the_body_and_the_line_closed(
    demo_gateway: GatewayProcess, kind: str
) -> None:
    headers, status = HEADERS[kind]
    with socket.create_connection(("127.0.0.1", demo_gateway.port), timeout=10) as line:
        line.sendall(b"POST /adapters HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n")
        answer = b""
        while piece := line.recv(1 << 16):  # ends only because the other side closes
            answer += piece
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_the_quarantine_is_no_place_anybody_reads(demo_gateway: GatewayProcess) -> None:
    quarantine: Path = demo_gateway.log.parent / "quarantine"
    assert quarantine.stat().st_mode & 0o077 == 0
