"""Several gateways on one store: PostgreSQL and one directory of artefacts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.support.gateway import SERVED, Running, gateway
from tests.support.postgres import Server
from tests.support.simulator import Simulator

Join = Callable[..., Awaitable[Running]]


def options(home: Path, url: str) -> dict[str, Any]:
    """Settings that the gateways share."""
    return {"catalogue_url": url, "artefacts": home / "artefacts", "tau": 1e9, "max_pruned_share": 1.0}


@pytest_asyncio.fixture
async def join(tiny_reference_dir: Path, tmp_path: Path, postgres: Server) -> AsyncIterator[Join]:
    """`await join(tau=…)`: one more gateway on this store, with an engine of its own, in this process."""
    url, numbers = postgres.fresh(), count()
    async with AsyncExitStack() as closers:

        async def joined(**overrides: Any) -> Running:
            number = next(numbers)
            simulator = Simulator(tmp_path / f"e{number}.sock", SERVED)
            await simulator.start()
            closers.push_async_callback(simulator.stop)
            set_so = {**options(tmp_path, url), "tau": 3.0, **overrides}
            opened = gateway(tmp_path / f"data-{number}", tiny_reference_dir, simulator, **set_so)
            return await closers.enter_async_context(opened)

        yield joined
