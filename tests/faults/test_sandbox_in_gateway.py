"""A gateway with its sandbox: children are killed under its uploads, and everything is audited afterwards."""

import asyncio
import contextlib
import os
import signal
import time

from tests.support.audited import rested
from tests.support.gateway import OpenHouse, form
from tests.support.sandboxes import children


async def test_a_gateway_with_it(open_gateway: OpenHouse) -> None:
    """As configured by default: refusals and versions as ever, and a killed child is one refused version."""
    async with open_gateway(screen_sandbox=True, tau=1e9) as running:
        answer = await running.http.post("/adapters", files=form("style"))
        assert answer.status_code == 201, answer.text
        dry = await running.http.post("/screen", files=form("style"))
        assert (dry.status_code, dry.json()["verdict"]["id"]) == (200, answer.json()["report"]["verdict"]["id"])
        bad_form = form("bad") | {"config": ("c", b"{}")}
        assert (await running.http.post("/adapters", files=bad_form)).status_code == 400
        pushes = [asyncio.ensure_future(running.http.post("/adapters", files=form("many", seed))) for seed in range(8)]
        process = running.gateway.sandbox._worker.process
        deadline = time.monotonic() + 5
        killed = 0
        while killed < 2 and time.monotonic() < deadline and not all(push.done() for push in pushes):
            for child in children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                    killed += 1
            await asyncio.sleep(0.005)
        answers = await asyncio.gather(*pushes)
        codes = [answer.json()["error"]["code"] for answer in answers if answer.status_code == 422]
        assert set(codes) <= {"screening_killed"}
        assert {answer.status_code for answer in answers} <= {201, 200, 202, 422, 429}
        assert (await running.http.post("/adapters", files=form("after", 99))).status_code == 201
        assert 'code="screening_killed"' in (await running.http.get("/metrics")).text or not codes
        await rested(running)
