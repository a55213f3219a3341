"""The tour's last promise: the store it leaves stands an audit, and the tour says so when it does not."""

import asyncio
from pathlib import Path

import pytest

from app.demo.tour import Tour, check_audit
from tests.support.gateway import OpenHouse, form


async def test_the_tour_fails_by_what_its_audit_finds(
    open_gateway: OpenHouse, tiny_reference_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"action": "project", "tau": 0.0, "max_removed_share": 1.0}
    async with open_gateway(**policy) as running:
        pushed = (await running.http.post("/adapters", files=form("one"))).json()
        assert pushed["outcome"] == "projected"
        at = (running.data, running.simulator.url, tiny_reference_dir)
        sound, damaged = Tour(), Tour()
        await asyncio.to_thread(check_audit, sound, *at)
        assert sound.broken == []
        assert "1 artefacts measured again" in capsys.readouterr().out.replace("\n", " ")
        weights = running.data / "artefacts" / pushed["digest"] / "adapter_model.safetensors"
        weights.chmod(0o644)
        await asyncio.to_thread(check_audit, damaged, *at)
        assert damaged.broken == ["the audit finds nothing broken (exit status 1)"]
