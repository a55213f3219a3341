"""Other people's clients, each in an environment of its own: what they need may not agree with what we pin.

Made the first time from the pins in tests/clients/ and kept under the user's cache, one folder for each set of pins. An
environment that cannot be made fails the test; with CLIENTS_MAY_LACK=1 (`make clients`) it is skipped, and says why.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

HOME: Final = Path(__file__).resolve().parents[1] / "clients"
"""The clients' pins and programs."""

RECORDED: Final = HOME / "recorded"
"""Requests of two turns by each client."""

KEPT: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lora-gateway-tests" / "clients"
ANSWER_S: Final = 120.0
INSTALL_S: Final = 600.0
MADE: Final = "made"
SAID_CHARS: Final = 300
"""Characters of an installer's last words that are passed on."""


def python_with(client: str) -> Path:
    """A Python that has `client` as pinned in tests/clients/<client>.txt."""
    pins = HOME / f"{client}.txt"
    folder = _folder(client, pins)
    python = folder / "bin" / "python"
    with _to_be_made(folder) as missing:
        if missing:
            _do(sys.executable, "-m", "venv", folder)
            _do(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", pins)
    return python


def node_with(client: str) -> tuple[Path, Path]:
    """Node, and a folder in which it finds `client`'s packages as locked. Skips the test where there is no Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip(f"Node is not installed: nothing to run {client} with")
    lock = HOME / client / "package-lock.json"
    folder = _folder(client, lock)
    with _to_be_made(folder) as missing:
        if missing:
            folder.mkdir(parents=True)
            for file in (HOME / client / "package.json", lock):
                shutil.copy(file, folder)
            _do(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return Path(node), folder


def node_program(client: str, text: str, folder: Path) -> list[str | Path]:
    """Command that runs a program in `folder`, in which `import` finds `client`'s packages."""
    node, packages = node_with(client)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    program = folder / "program.mjs"
    program.write_text(text, encoding="utf-8")
    return [node, program]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """What a client's program printed. It gets PATH, a home in `cwd` and `env`: nothing of the user's own settings."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=ANSWER_S)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _folder(name: str, pins: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return KEPT / f"{name}-{version}-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"


@contextmanager
def _to_be_made(folder: Path) -> Iterator[bool]:
    """Whether the environment in `folder` is missing; it counts as made once the block has ended. One run of the tests at a
    time: the others wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = not (folder / MADE).exists()
        if missing:
            shutil.rmtree(folder, ignore_errors=True)
        yield missing
        (folder / MADE).touch()


def _do(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode and os.environ.get("CLIENTS_MAY_LACK"):
        pytest.skip(f"it does not install here: {(done.stderr or done.stdout)[-SAID_CHARS:].strip()}")
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
