"""Open files: a gateway takes as many as it may have, and gives all of them back when it is closed."""

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from app.domain.lora import Shape
from app.screen.reference import open as reference_module
from app.server import open_files
from tests.support.gateway import OpenHouse, form
from tests.support.references import make_reference

MODULES = 150
SOFT = 200
"""Fewer than two for each module, more than Python and torch need."""


def mapped_in(code: str) -> subprocess.CompletedProcess[str]:
    """Python with a low soft limit, and references mapped however small they are."""

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=low, timeout=100)


def test_a_reference_of_more_modules_than_the_soft_limit_allows_is_opened(tmp_path: Path) -> None:
    directory = make_reference(tmp_path, layers=MODULES, shapes={"self_attn.q_proj": Shape(32, 32)})
    opening = f"""
import functools, sys
from app.screen.reference import open as reference
reference.open_reference = functools.partial(reference.open_reference, hold_bytes=0)
sys.argv = ["app", "reference", "inspect", {str(directory)!r}]
from app.cli.main import main
main()
"""
    done = mapped_in(opening)
    assert done.returncode == 0, done.stdout + done.stderr
    assert reference_module.HOLD_BYTES > 0  # such a small one is copied otherwise, and needs no files


def test_a_low_hard_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"now": (256, 1024)}
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    monkeypatch.setattr(open_files, "event", lambda what, _, **fields: told.append((what, fields["limit"])))
    open_files.tell_open_files()
    assert limits["now"] == (1024, 1024)
    assert told == [("few_open_files", 1024)]
    limits["now"] = (1024, 1 << 20)
    open_files.tell_open_files()
    assert (limits["now"], len(told)) == ((1 << 20, 1 << 20), 1)


def test_where_it_cannot_be_raised_the_gateway_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise it")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert open_files.raise_open_files() == 256


def opened_below(directory: Path) -> list[str]:
    """Files of this process in or below the directory."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing's own
            continue
    return [path for path in found if path.startswith(str(directory))]


async def test_a_gateway_that_was_closed_holds_no_file_of_its_data(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        assert (await running.http.post("/adapters", files=form("bard"))).status_code == 201
        assert opened_below(running.data)
    async with asyncio.timeout(5):  # a thread that was at the catalogue when the gateway stopped ends its look first
        while opened_below(running.data):
            await asyncio.sleep(0.01)
