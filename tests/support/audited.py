"""The auditor over a running house: disk, catalogue and the simulated engine must agree, once it has come to rest."""

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from app.gateway.engine_lists import engine_list
from app.store.audit.audit import Promise, audit
from app.store.catalogue.database import sqlite_url
from tests.support import tally
from tests.support.gateway import KEY, Running

REST_S = 40.0


async def rested(
    running: Running, promised: Iterable[Promise] = (), url: str | None = None, artefacts: Path | None = None
) -> None:
    """Until there are no findings; those that stay fail the test. url, artefacts: where not in the data directory."""
    promises, url = tuple(promised), url or sqlite_url(running.data / "catalogue.sqlite")
    deadline = asyncio.get_running_loop().time() + REST_S
    while True:
        listed = await engine_list(running.simulator.url)
        look = partial(audit, running.data, url, listed=listed, promised=promises, secrets=[KEY], artefacts=artefacts)
        found = await asyncio.to_thread(look)
        if not found.findings:
            tally.audits["sound"] += 1
            return
        assert asyncio.get_running_loop().time() < deadline, found.findings
        await asyncio.sleep(0.05)
