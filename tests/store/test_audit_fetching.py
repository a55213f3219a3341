"""`store audit` of engines that fetch adapters by themselves: nothing is missing there, and what is there must be ours."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.load.test_plugin_engine import Fetching, chat, fleet, up
from tests.support.gateway import OpenHouse, Running, form

NAMES = ("bard", "clerk")


def run(line: list[str | Path], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(line, capture_output=True, text=True, env=environment)


async def audited(running: Running, *engines: Fetching, **environment: str) -> tuple[int, list[dict[str, str]]]:
    """The command's status and findings, asked of these engines."""
    line: list[str | Path] = [
        sys.executable,
        "-m",
        "app",
        "store",
        "audit",
        "--data",
        running.data,
        "--patience",
        "0",
        "--json",
    ]
    line += ["--engine-url", ",".join(engine.url for engine in engines)]
    told = await asyncio.to_thread(run, line, os.environ | environment)
    assert told.returncode in (0, 1), told.stderr
    assert told.stdout, told.stderr
    return told.returncode, json.loads(told.stdout)["findings"]


async def filled(running: Running, *engines: Fetching) -> dict[str, str]:
    """Two adapters, of which some engine was asked for one besides the trials; name → digest."""
    await up(running, len(engines))
    found = {}
    for seed, name in enumerate(NAMES):
        pushed = await running.http.post("/adapters", files=form(name, seed))
        assert pushed.status_code == 201, pushed.text
        found[name] = pushed.json()["digest"]
    assert await chat(running, "bard") == 200
    return found


RESOLVES = {"GATEWAY_ENGINE_RESOLVES": "true"}


async def test_what_no_engine_was_asked_for_yet_is_not_missing(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with fleet(open_gateway, tmp_path) as (running, one, two):
        await filled(running, one, two)
        two.loaded |= one.loaded
        one.loaded.clear()  # as after a restart
        assert await audited(running, one, two, **RESOLVES) == (0, [])
        assert await audited(running, one, **RESOLVES) == (0, [])
        status, findings = await audited(running, one, two)  # engines that are to be filled lack everything
        assert status == 1
        assert {finding["invariant"] for finding in findings} == {"I1", "I4"}


def unknown(digests: dict[str, str]) -> tuple[str, str]:
    return f"nobody@{'0' * 12}", f"/cache/{'0' * 64}"


def without_a_version(digests: dict[str, str]) -> tuple[str, str]:
    return "mine", f"/cache/{digests['bard']}"


def another_digest(digests: dict[str, str]) -> tuple[str, str]:
    return f"bard@{digests['bard'][:12]}", f"/cache/{digests['clerk']}"


@pytest.mark.parametrize("wrong", [unknown, without_a_version, another_digest])
async def test_what_is_not_ours_is_found_in_whichever_engine(
    open_gateway: OpenHouse, tmp_path: Path, wrong: Callable[[dict[str, str]], tuple[str, str]]
) -> None:
    async with fleet(open_gateway, tmp_path) as (running, one, two):
        name, path = wrong(await filled(running, one, two))
        two.loaded[name] = path
        status, findings = await audited(running, one, two, **RESOLVES)
        assert status == 1
        (found,) = findings
        assert found["invariant"] == "I1"
        assert name in found["where"]
        assert "engine 2" in found["where"]
        assert path in found["what"]


async def test_what_was_deleted_stays_in_an_engine_and_is_said(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with fleet(open_gateway, tmp_path) as (running, one, two):
        await filled(running, one, two)
        one.loaded |= two.loaded
        two.loaded.clear()
        assert (await running.http.delete("/adapters/bard")).status_code == 204
        status, findings = await audited(running, one, two, **RESOLVES)
        assert status == 1
        assert [(found["invariant"], found["what"].partition(":")[0]) for found in findings] == [("I1", "is deleted")]
        one.loaded.clear()  # it was started again
        assert await audited(running, one, two, **RESOLVES) == (0, [])


async def test_what_the_policy_withholds_is_said(open_gateway: OpenHouse, tmp_path: Path) -> None:
    kept: dict[str, str] = {}
    async with fleet(open_gateway, tmp_path, tau=1e9, max_pruned_share=1.0) as (running, one, two):
        await filled(running, one, two)
        kept |= one.loaded | two.loaded
    strict: dict[str, Any] = {"tau": 0.0, "max_pruned_share": 0.0}
    async with fleet(open_gateway, tmp_path, **strict) as (running, one, _two):
        one.loaded |= kept
        status, findings = await audited(running, one, **RESOLVES)
        assert status == 1
        assert {finding["what"].partition(":")[0] for finding in findings} == {"is withheld by the policy in force"}
        assert len(findings) == len(NAMES)
