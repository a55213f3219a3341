"""An upload cancelled at its n-th await, for every n until it comes through: nothing is lost, held, or half visible."""

import asyncio
import threading

import pytest

from app.domain.verdict import Verdict
from app.store.audit.audit import Promise
from app.upload.receive import SealedUpload
from tests.support.audited import rested
from tests.support.cancelling import Moment, ends_before
from tests.support.gateway import OpenHouse, Running, form
from tests.support.waiting import STUCK_S

AWAITS = 400


async def push_cancelled(running: Running, name: str, seed: int, n: int, moment: Moment) -> bool:
    """Whether the upload ended before its n-th await."""
    return await ends_before(running.http.post("/adapters", files=form(name, seed)), n, moment)


@pytest.mark.parametrize("kind", ["new", "known", "with the engine away", "tried again"])
@pytest.mark.parametrize("moment", Moment)
async def test_an_upload_cancelled_at_any_await(open_gateway: OpenHouse, kind: str, moment: Moment) -> None:
    async with open_gateway(tau=1e9) as running:
        assert (await running.http.post("/adapters", files=form("known", 0))).status_code == 201
        if kind == "with the engine away":
            running.simulator.faults["load"] = "500"
            running.simulator.faults["health"] = "503"
        if kind == "tried again":
            running.simulator.faults["load"] = "lie"
            assert (await running.http.post("/adapters", files=form("style", 7))).status_code == 502
        same = {"known": ("known", 0), "tried again": ("style", 7)}
        for n in range(1, AWAITS):
            name, seed = same.get(kind, ("style", n + 1))
            if await push_cancelled(running, name, seed, n, moment):
                break
        else:
            raise AssertionError("it never came through")
        assert n > 3, "an upload awaits more often than that"
        running.simulator.faults.clear()
        assert (await running.http.post("/adapters", files=form("after", 999))).status_code in (201, 202)
        async with asyncio.timeout(STUCK_S):
            while running.gateway.context.uploads._working:
                await asyncio.sleep(0.02)
        await rested(running, [Promise("known", 1)])
        assert not list((running.data / "quarantine").iterdir())
        async with asyncio.timeout(STUCK_S):
            while running.gateway.context.uploads.components.catalogue.unfinished():
                await asyncio.sleep(0.02)


async def test_a_dry_run_whose_client_leaves_keeps_its_file_until_it_is_measured(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = running.gateway.context.uploads
    measure, begun, go_on, open_still = uploads.measure, threading.Event(), threading.Event(), []

    def slow(sealed: SealedUpload, tenant: str) -> Verdict:
        begun.set()
        assert go_on.wait(10)
        open_still.append(not sealed.weights.file.closed)
        return measure(sealed, tenant)

    monkeypatch.setattr(uploads, "measure", slow)
    asked = asyncio.ensure_future(running.http.post("/screen", files=form("mine")))
    assert await asyncio.to_thread(begun.wait, 10)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    go_on.set()
    async with asyncio.timeout(STUCK_S):
        while list((running.data / "quarantine").iterdir()) or not open_still:
            await asyncio.sleep(0.02)
    assert open_still == [True]
