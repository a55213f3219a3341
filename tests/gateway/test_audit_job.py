"""A running gateway audits itself: what it finds is on the dashboard and in the log, and nothing else is stopped by it."""

import asyncio
import logging
import math

import pytest

from app.store.audit.audit import Skipped
from tests.support.gateway import OpenHouse, Running, form

SOON_S = 20.0


async def gauge(running: Running, name: str) -> float:
    text = (await running.http.get("/metrics")).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def broken(running: Running, expected: int) -> None:
    async with asyncio.timeout(SOON_S):
        while await gauge(running, "gateway_audit_broken_invariants") != expected:
            await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gateway.audit_job.PATIENCE_S", 0.2)


async def test_damage_under_a_running_gateway_is_found_and_its_repair_too(
    open_gateway: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    async with open_gateway(audit_seconds=0.1) as running:
        version = (await running.http.post("/adapters", files=form("style"))).json()
        await broken(running, 0)
        assert await gauge(running, "gateway_audit_timestamp_seconds") > 1e9
        weights = running.data / "artefacts" / version["digest"] / "adapter_model.safetensors"
        whole, mode = weights.read_bytes(), weights.stat().st_mode
        weights.chmod(0o600)
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        weights.chmod(mode)
        async with asyncio.timeout(SOON_S):
            while not await gauge(running, "gateway_audit_broken_invariants") > 0:
                await asyncio.sleep(0.05)
        assert any(record.message.startswith("audit_finding") for record in caplog.records)
        weights.chmod(0o600)
        weights.write_bytes(whole)
        weights.chmod(mode)
        await broken(running, 0)


async def test_an_engine_that_reads_other_bytes_than_ours_is_found(open_gateway: OpenHouse) -> None:
    async with open_gateway(reconcile_seconds=3600) as running:
        await running.http.post("/adapters", files=form("style"))
        look = running.gateway.auditor.look
        before = await asyncio.to_thread(look)
        assert (before.findings, before.counts["engine_names"], before.counts["engines"]) == ((), 2, 1)
        (name,) = running.simulator.loaded
        running.simulator.loaded[name] = "/elsewhere"
        assert [finding.invariant for finding in (await asyncio.to_thread(look)).findings] == ["I1"]
        assert await gauge(running, "gateway_audit_broken_invariants") == 1


async def test_while_the_engine_is_away_it_is_not_asked(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        await running.simulator.stop()
        await running.http.post("/adapters", files=form("style"))
        found = await asyncio.to_thread(running.gateway.auditor.look)
        assert (found.findings, found.counts["artefacts"]) == ((), 1)
        assert not {"engines", "engine_names"} & found.counts.keys(), "no number is told of what was not looked at"
        assert Skipped("engines", "1 of 1 are away or being filled") in found.skipped


async def test_none_is_made_where_none_is_asked_for(open_gateway: OpenHouse) -> None:
    async with open_gateway(audit_seconds=0) as running:
        await asyncio.sleep(0.3)
        assert math.isnan(await gauge(running, "gateway_audit_broken_invariants"))


async def test_it_reads_no_faster_than_its_rate_and_stops_at_once(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gateway.audit_job.BYTES_PER_S", 1)  # one artefact would take hours
    async with open_gateway(audit_seconds=0.1) as running:
        await running.http.post("/adapters", files=form("style"))
        auditor = running.gateway.auditor
        looking = asyncio.ensure_future(asyncio.to_thread(auditor.look))
        await asyncio.wait({looking}, timeout=1.0)
        assert not looking.done()
        auditor.stop()
        async with asyncio.timeout(SOON_S):
            assert (await looking).findings == ()
