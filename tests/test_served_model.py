"""The gateway serves the checkpoint that its reference is for: another one is refused, with a reason, or trusted aloud."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.demo.assets import ALIGNED, BASE, REFERENCE
from app.domain.errors import MODEL_MISMATCH, Unavailable
from app.server.settings import Settings
from app.server.wiring import wire_gateway
from tests.support.gateway import OpenHouse, Running, form
from tests.support.references import make_pair
from tests.support.waiting import STUCK_S

ROOT = Path(__file__).parents[1]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=STUCK_S)


async def ready(running: Running, wanted: Callable[[Any], bool]) -> Any:
    """The first answer of /ready that is as wanted."""
    async with asyncio.timeout(STUCK_S):
        while not wanted(body := (await running.http.get("/ready")).json()):
            await asyncio.sleep(0.02)
    return body


# ---- the embedded engine -----------------------------------------------------------------------------------------


def test_serve_refuses_the_references_base_before_any_engine_is_started(tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = run("serve", "--model", BASE, "--reference", REFERENCE, "--data", data, "--open", "--port", "0")
    assert done.returncode == 1
    assert f"{BASE}: the model is the reference's base checkpoint, not its aligned one" in done.stderr
    assert MODEL_MISMATCH.hint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (data / "engine.log").exists()


def embedded(data: Path, model: Path, **more: Any) -> Settings:
    given = {"model": str(model), "reference": REFERENCE, "data": data, "open": True, "screen_sandbox": False, **more}
    return Settings(**given)


def test_the_embedded_engines_files_are_compared_before_anything_is_opened(tmp_path: Path) -> None:
    wire_gateway(embedded(tmp_path / "aligned", ALIGNED)).closers.close()
    with pytest.raises(Unavailable, match="base checkpoint, not its aligned one") as caught:
        wire_gateway(embedded(tmp_path / "base", BASE))
    assert caught.value.code is MODEL_MISMATCH
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["checkpoint-digests.json"]


def test_a_model_without_readable_weights_is_served_only_if_trusted(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Unavailable, match="no safetensors files") as caught:
        wire_gateway(embedded(tmp_path / "data", tmp_path / "pickled"))
    assert caught.value.code is MODEL_MISMATCH
    for model in (tmp_path / "pickled", BASE):
        wire_gateway(embedded(tmp_path / "data", model, trust_model=True)).closers.close()


# ---- an engine of somebody else's --------------------------------------------------------------------------------


async def test_an_engine_that_serves_the_base_is_not_used_and_ready_says_why(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    base, aligned = (str(tiny_reference_dir.parent / side) for side in ("base", "aligned"))
    async with open_gateway() as running:
        await ready(running, lambda body: body["status"] == "ready")
        running.simulator.root = base
        await running.simulator.stop()
        running.gateway.reconciler.poke()
        await ready(running, lambda body: body["status"] != "ready")
        await running.simulator.start()
        said = await ready(running, lambda body: "base checkpoint" in body["parts"]["engine"])
        assert said["status"] == "not ready"
        assert base not in str(said)  # /ready is open to everybody
        chat = {"model": "served", "messages": [{"role": "user", "content": "x"}]}
        refused = await running.http.post("/v1/chat/completions", json=chat)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert not running.simulator.seen
        running.simulator.root = aligned
        said = await ready(running, lambda body: body["status"] == "ready")
        assert said["details"]["model"] == "the reference's aligned checkpoint, by its files"
        assert said["details"]["behaviour"] == "not looked at"


async def test_a_restart_with_another_model_between_two_looks_is_noticed_without_any_adapter(
    open_gateway: OpenHouse, tiny_reference_dir: Path
) -> None:
    async with open_gateway() as running:
        await ready(running, lambda body: body["status"] == "ready")
        running.simulator.root = str(tiny_reference_dir.parent / "base")  # what a new process at the same URL lists
        await ready(running, lambda body: "base checkpoint" in body["parts"]["engine"])


async def test_a_model_exchanged_between_two_starts_is_noticed(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        said = await ready(running, lambda body: body["status"] == "ready")
        assert said["details"]["model"].startswith("not compared: its answers were recorded")
    async with open_gateway() as running:
        said = await ready(running, lambda body: body["status"] == "ready")
        assert said["details"]["model"].startswith("the model first served with this reference")
        running.simulator.checkpoint = "base"
    async with open_gateway() as running:
        said = await ready(running, lambda body: "nats a token apart" in body["parts"]["engine"])
        assert said["status"] == "not ready"
        assert said["details"]["model"].startswith("another model")
    async with open_gateway(trust_model=True) as running:
        said = await ready(running, lambda body: body["status"] == "ready")
        assert said["details"]["model"].startswith("trusted, although the model's answers are not those")


async def test_a_model_exchanged_behind_an_address_that_is_never_away_is_noticed(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        await ready(running, lambda body: body["status"] == "ready")
        assert (await running.http.post("/adapters", files=form("mine"))).status_code == 201
        running.simulator.checkpoint = "base"
        running.simulator.loaded.clear()  # what a new process behind the same address knows
        await ready(running, lambda body: "nats a token apart" in body["parts"]["engine"])
        running.simulator.checkpoint = "aligned"
        await ready(running, lambda body: body["status"] == "ready")
        async with asyncio.timeout(STUCK_S):
            while not running.gateway.reconciler.loaded:
                await asyncio.sleep(0.02)


# ---- the reference -----------------------------------------------------------------------------------------------


def test_reference_build_says_when_the_two_look_swapped_and_refuses_equal_ones(tmp_path: Path) -> None:
    base, aligned = make_pair(tmp_path)
    swapped = run("reference", "build", "--base", aligned, "--aligned", base, "--out", tmp_path / "r", "--top-k", "4")
    assert swapped.returncode == 0, swapped.stderr
    assert swapped.stderr.count("warning: are --base and --aligned swapped?") == 2
    equal = run("reference", "build", "--base", aligned, "--aligned", aligned, "--out", tmp_path / "s")
    assert equal.returncode == 1
    assert "no module differs" in equal.stderr
    assert "Traceback" not in equal.stderr
    assert not (tmp_path / "s").exists()
