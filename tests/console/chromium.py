"""Debian's chromium for the browser tests: the one that is there, else installed where that is possible."""

import os
import shutil
import subprocess
from typing import Final

import pytest

FLAGS: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"),
    *("--no-first-run", "--disable-sync", "--disable-component-update", "--disable-dev-shm-usage"),
)
INSTALL_S: Final = 400


def chromium() -> str:
    """Its path. Skips the test that asks, and says why, where there is none and none can be had."""
    if found := shutil.which("chromium"):
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no chromium on PATH, and not root on Debian: apt-get install chromium fonts-dejavu-core")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = "apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core"
    try:
        done = subprocess.run(["sh", "-c", command], env=environment, timeout=INSTALL_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        pytest.skip(f"apt-get install chromium took longer than {INSTALL_S} s")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip(f"apt-get install chromium failed: {done.stderr.strip()[-300:]}")
    return found
