"""A screening process whose children do what a stranger would have them do, when the configuration asks for it."""

import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.domain.digest import digest_of
from app.domain.errors import BAD_CONFIG
from app.sandbox import worker
from app.sandbox.protocol import FRAME, Order
from app.sandbox.worker import Answer

REAL = worker.work


def work(measure: Any, order: Order, weights_fd: int, answer: Answer) -> None:
    """`worker.work`, or something worse."""
    asked = order.config.partition(b"|")[0]
    wish, _, detail = asked.decode(errors="replace").partition(":")
    if wish == "forge":
        forge(detail, measure, order, weights_fd, answer)
    elif wish == "look":  # in the only words that come through
        files = {int(path.name): str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
        standard = {files.pop(number) for number in (0, 1, 2)}
        said = " ".join(sorted({"files": files.values(), "standard": standard}.get(detail, os.environ)))
        answer.send({"refused": BAD_CONFIG.name, "message": said, "param": None})
    elif wish in WORSE:
        WORSE[wish](detail)
    elif wish == "digest":
        answer.send({"refused": BAD_CONFIG.name, "message": digest_of(order.config).hex, "param": None})
    elif wish == "wait":
        Path(detail, "arrived").write_bytes(b"!")
        with Path(detail, "go").open("rb", buffering=0) as go:
            go.read(1)
        REAL(measure, replace(order, config=order.config.partition(b"|")[2]), weights_fd, answer)
        return
    elif wish == "cut short":
        with mmap.mmap(weights_fd, 0, access=mmap.ACCESS_READ) as mapped:
            Path(detail, "arrived").write_bytes(b"!")
            while True:
                mapped[-1]
    else:
        REAL(measure, order, weights_fd, answer)
        return
    answer.send({"done": True})


def spin(_: str) -> None:
    while True:
        pass


def write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"x")


WORSE: dict[str, Callable[[str], object]] = {
    "signal": lambda number: os.kill(os.getpid(), int(number)),
    "memory": lambda size: bytearray(int(size)),
    "torch memory": lambda size: torch.zeros(int(size), dtype=torch.uint8).sum(),
    "sleep": lambda _: time.sleep(3600),
    "spin": spin,
    "write": write,
    "connect": lambda port: socket.create_connection(("127.0.0.1", int(port)), timeout=5).close(),
}


def forge(kind: str, measure: Any, order: Order, weights_fd: int, answer: Answer) -> None:
    """Frames that are not what they should be."""
    line = answer._line._stream
    if kind == "noise":
        line.sendall(os.urandom(1 << 12))
    elif kind == "endless":
        line.sendall(FRAME.pack(1 << 31, 0))
    elif kind == "no object":
        line.sendall(FRAME.pack(2, 0) + b"[]")
    elif kind == "deep":
        line.sendall(FRAME.pack(200_000, 0) + b"[" * 200_000)
    elif kind == "unasked":
        answer.send({"screened": {}})
    elif kind == "a code nobody knows":
        answer.send({"refused": "ok", "message": "", "param": None})
    else:
        real = answer.send

        def send(fields: Any, payload: bytes = b"") -> None:
            fields, payload = forged(kind, dict(fields), payload)
            real(fields, payload)

        answer.send = send  # type: ignore[method-assign]
        good = order.config.partition(b"|")[2]
        REAL(measure, replace(order, config=good), weights_fd, answer)


VERDICTS: dict[str, Callable[[Any], object]] = {
    "another policy": lambda verdict: verdict["policy"].update(tau=2.0),
    "a module nobody has": lambda verdict: verdict["modules"][0].update(name="model.layers.99.mlp.up_proj"),
    "a number that is none": lambda verdict: verdict["modules"][0].update(update_norm="x"),
    "another outcome": lambda verdict: verdict.update(outcome="emptied"),
}
DURATIONS: dict[str, float] = {"a duration beyond all floats": 10**400, "a duration below zero": -1.0}
PAYLOADS: dict[str, Callable[[bytes], bytes]] = {
    "another tensor": lambda payload: payload.replace(b"lora_A", b"lora_X", 1),
    "longer": lambda payload: payload + bytes(64),
    "far too long": lambda _: bytes(8 << 20),
}


def forged(kind: str, fields: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """One frame, changed."""
    if "took" in fields and kind in DURATIONS:
        fields["seconds"] = DURATIONS[kind]
    if "screened" in fields and kind in VERDICTS:
        VERDICTS[kind](fields["screened"])
    if "weights" in fields and kind in PAYLOADS:
        payload = PAYLOADS[kind](payload)
    if "config" in fields and kind == "another configuration":
        payload = payload.replace(b'"bias": "none"', b'"bias": "lora_only"')
    if "done" in fields and kind == "never done":
        os.kill(os.getpid(), signal.SIGKILL)
    return fields, payload


worker.work = work

if __name__ == "__main__":
    worker.main()
