"""A real Prometheus and its promtool: the ones installed, or Debian's, unpacked without being installed.

Unpacked, because installing would start a service. Where there is neither, tests are skipped with a line that says so.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "docker" / "prometheus"
RULES = HOME / "rules"

KEPT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lora-gateway-tests" / "prometheus"
"""Where Debian's package is unpacked, once for all runs."""

START_S = 30.0


@cache
def programs() -> Mapping[str, Path] | str:
    """prometheus and promtool, or why there are none."""
    return _found() or _unpacked() or _found() or "Debian's package holds no Prometheus"


def _found() -> Mapping[str, Path] | None:
    for folder in (None, str(KEPT / "usr" / "bin")):
        found = {name: shutil.which(name, path=folder) for name in ("prometheus", "promtool")}
        if all(found.values()):
            return {name: Path(str(path)) for name, path in found.items()}
    return None


def _unpacked() -> str | None:
    """Debian's package into KEPT; what went wrong, if anything."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "Prometheus is not installed, and this is no Debian to fetch it from"
    with tempfile.TemporaryDirectory() as folder:
        for command in (["download", "prometheus"], ["update"], ["download", "prometheus"]):
            done = subprocess.run(["apt-get", *command], cwd=folder, capture_output=True, text=True)
            if packages := sorted(Path(folder).glob("prometheus_*.deb")):
                subprocess.run(["dpkg-deb", "-x", packages[-1], Path(folder, "unpacked")], check=True)
                keep(Path(folder, "unpacked", "usr", "bin"), KEPT / "usr" / "bin")
                return None
    return f"Prometheus is not installed and cannot be fetched: {done.stderr.strip()[-200:]}"


def keep(unpacked: Path, kept: Path) -> None:
    """Copy programs into `kept`, each at once: another run may be unpacking there too, or running what is there."""
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".") as beside:
        for program in unpacked.iterdir():
            shutil.copy2(program, beside)
            Path(beside, program.name).replace(kept / program.name)


def _programs() -> Mapping[str, Path]:
    found = programs()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@dataclass(frozen=True)
class Promtool:
    """`promtool("check", "rules", …)`."""

    program: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.program, *arguments], capture_output=True, text=True, timeout=60)

    @staticmethod
    def configuration(folder: Path, **changed: str) -> Path:
        """docker/prometheus as compose mounts it, with a key file, and texts of prometheus.yml changed."""
        key = folder / "metrics_key"
        key.touch()
        text = (HOME / "prometheus.yml").read_text(encoding="utf-8").replace("/run/secrets/metrics_key", str(key))
        for old, new in changed.items():
            assert old in text, old
            text = text.replace(old, new)
        shutil.copytree(RULES, folder / "rules", dirs_exist_ok=True)
        file = folder / "prometheus.yml"
        file.write_text(text, encoding="utf-8")
        return file


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Skips where there is no Prometheus."""
    return Promtool(_programs()["promtool"])


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **query: Any) -> Any:
        """`data` of one API answer; fails the test where Prometheus says no."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query, timeout=30.0)
        said = answer.json()
        assert said["status"] == "success", f"{query.get('query', path)}: {said.get('error')}"
        return said["data"]


def free_port() -> int:
    """A port of loopback nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(configuration: Path) -> Iterator[Prometheus]:
    """Run one over this configuration on loopback, with its data beside it."""
    port = free_port()
    command = [
        *(str(_programs()["prometheus"]), f"--config.file={configuration}"),
        *(f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={configuration.parent / 'tsdb'}"),
        "--log.level=warn",
    ]
    with (configuration.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not _ready(url):
            assert process.poll() is None, (configuration.parent / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus does not become ready"
            time.sleep(0.1)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(20)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
