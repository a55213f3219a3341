"""A screening process whose children do what a stranger would have them do, when the configuration asks for it."""

import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app.errors import BAD_CONFIG
from app.sandbox import worker as sandboxed
from app.sandbox.worker import FRAME, Told

REAL = sandboxed.work


def work(measure: Any, order: Any, weights_fd: int, told: Told) -> None:
    """`app.sandbox.worker.work`, or something worse."""
    asked = bytes.fromhex(order["config"]).partition(b"|")[0]
    wish, _, detail = asked.decode(errors="replace").partition(":")
    if wish == "forge":
        forge(detail, measure, order, weights_fd, told)
    elif wish == "look":  # in the only words that come through
        files = [
            str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if int(path.name) > 2 and path.is_symlink()
        ]
        said = " ".join(sorted(files if detail == "files" else os.environ))
        told.send({"refused": BAD_CONFIG.name, "message": said, "param": None})
    elif wish in WORSE:
        WORSE[wish](detail)
    elif wish == "cut short":
        with mmap.mmap(weights_fd, 0, access=mmap.ACCESS_READ) as mapped:
            while True:
                mapped[-1]
    else:
        REAL(measure, order, weights_fd, told)
        return
    told.send({"done": True})


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


def forge(kind: str, measure: Any, order: Any, weights_fd: int, told: Told) -> None:
    """Frames that are not what they should be."""
    line = told._out
    if kind == "noise":
        line.sendall(os.urandom(1 << 12))
    elif kind == "endless":
        line.sendall(FRAME.pack(1 << 31, 0))
    elif kind == "no object":
        line.sendall(FRAME.pack(2, 0) + b"[]")
    elif kind == "deep":
        line.sendall(FRAME.pack(200_000, 0) + b"[" * 200_000)
    elif kind == "unasked":
        told.send({"screened": {}})
    elif kind == "a code nobody knows":
        told.send({"refused": "ok", "message": "", "param": None})
    else:
        real = told.send

        def send(fields: Any, payload: bytes = b"") -> None:
            fields, payload = forged(kind, dict(fields), payload)
            real(fields, payload)

        told.send = send  # type: ignore[method-assign]
        good = bytes.fromhex(order["config"]).partition(b"|")[2]
        REAL(measure, {**order, "config": good.hex()}, weights_fd, told)


VERDICTS: dict[str, Callable[[Any], object]] = {
    "another policy": lambda verdict: verdict["policy"].update(tau=2.0),
    "a module nobody has": lambda verdict: verdict["modules"][0].update(name="model.layers.99.mlp.up_proj"),
    "a number that is none": lambda verdict: verdict["modules"][0].update(update_norm="x"),
    "another outcome": lambda verdict: verdict.update(outcome="emptied"),
}
PAYLOADS: dict[str, Callable[[bytes], bytes]] = {
    "another tensor": lambda payload: payload.replace(b"lora_A", b"lora_X", 1),
    "longer": lambda payload: payload + bytes(64),
    "far too long": lambda _: bytes(8 << 20),
}


def forged(kind: str, fields: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """One frame, changed."""
    if "screened" in fields and kind in VERDICTS:
        VERDICTS[kind](fields["screened"])
    if payload and kind in PAYLOADS:
        payload = PAYLOADS[kind](payload)
    if payload and kind == "another configuration":
        fields["config"] = fields["config"].replace(b'"bias": "none"'.hex(), b'"bias": "lora_only"'.hex())
    if "done" in fields and kind == "never done":
        os.kill(os.getpid(), signal.SIGKILL)
    return fields, payload


sandboxed.work = work

if __name__ == "__main__":
    sandboxed.main()
