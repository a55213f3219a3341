"""Fairness: one tenant's flood leaves another's p99 within 1.5 × of what it is alone.

The engine is the simulator; its answers take virtual time, as in an engine's batch: each step writes one token of every
sequence and takes the longer, the more there are. So the figures are of the gateway's admission and of that curve, on
however busy a machine.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from app.domain.api_keys import Role, new_key
from tests.support.gateway import SERVED, OpenHouse, Running

KEYS: Final = {
    tenant: new_key(f"{tenant}-app", [Role.UPLOAD, Role.CHAT, Role.ADMIN], tenant=tenant)
    for tenant in ("acme", "globex")
}
STEPS: Final = 8
"""Tokens of an answer."""

COSTS: Final = {1: 1.0, 8: 1.4, 16: 1.9, 64: 3.5}
"""Sequences → time of a step, in that of a single sequence: of vLLM's CPU build on two cores (server/receiving.py)."""

FLOOD: Final = 24
"""Clients of the flood, each of which asks again as soon as it was answered, or a step after it was refused."""

CHATS: Final = 100
AT_MOST: Final = 1.5
TURNS: Final = 20
"""Turns of the event loop in a step: in that time answers go out and new requests come in, however fast the machine is."""


def cost(sequences: int) -> float:
    """Time of a step, between the measured ones on a straight line."""
    places = [*COSTS]
    low = max(place for place in places if place <= sequences)
    high = min((place for place in places if place > sequences), default=low)
    part = (sequences - low) / (high - low) if high > low else 0.0
    return COSTS[low] + part * (COSTS[high] - COSTS[low])


class Batch:
    """Batch of an engine. now: virtual time, in steps of a single sequence. most: sequences that were in it at one time."""

    def __init__(self) -> None:
        self.now, self.most = 0.0, 0
        self._left: dict[asyncio.Future[str], int] = {}

    async def says(self, _: str, __: Mapping[str, Any]) -> str:
        """An answer, once it is written."""
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._left[done] = STEPS
        try:
            return await done
        finally:
            self._left.pop(done, None)

    async def run(self) -> None:
        """Write tokens until cancelled."""
        while True:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not self._left:
                continue
            self.most = max(self.most, len(self._left))
            self.now += cost(len(self._left))
            for done, left in list(self._left.items()):
                self._left[done] = left - 1
                if left == 1 and not done.done():
                    done.set_result("words")


async def chat(running: Running, who: str) -> int:
    body = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {KEYS[who][0]}"}
    return (await running.http.post("/v1/chat/completions", json=body, headers=headers)).status_code


async def p99(running: Running, batch: Batch) -> float:
    """99th percentile of the virtual time of globex's chats, one after another."""
    taken = []
    for _ in range(CHATS):
        began = batch.now
        assert await chat(running, "globex") == 200, "no chat of it is refused"
        taken.append(batch.now - began)
    return sorted(taken)[CHATS * 99 // 100 - 1]


@asynccontextmanager
async def flooded(running: Running, batch: Batch) -> AsyncIterator[list[int]]:
    """While acme floods the gateway; the statuses of its answers."""
    statuses: list[int] = []

    async def ask_again_and_again() -> None:
        while True:
            statuses.append(await chat(running, "acme"))
            now = batch.now
            while statuses[-1] != 200 and batch.now == now:
                await asyncio.sleep(0)

    clients = [asyncio.create_task(ask_again_and_again()) for _ in range(FLOOD)]
    try:
        yield statuses
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [8, 128], ids=["as on two cores", "no limit to speak of"])
async def test_a_flood_leaves_another_tenants_p99(open_gateway: OpenHouse, tmp_path: Path, sequences: int) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"{stored.line}\n" for _, stored in KEYS.values()))
    async with open_gateway(api_keys_file=file, max_sequences=sequences, log_requests=False) as running:
        batch = Batch()
        running.simulator.says = batch.says
        writing = asyncio.create_task(batch.run())
        try:
            alone = await p99(running, batch)
            async with flooded(running, batch) as statuses:
                beside = await p99(running, batch)
        finally:
            writing.cancel()
        print(
            f"{sequences} sequences: p99 of {CHATS} chats {beside / alone:.2f} × beside a flood; "
            f"{statuses.count(200)} answers to it, {statuses.count(429)} refusals, {batch.most} sequences at most"
        )
        assert statuses.count(200) > CHATS, "the flood is served as well"
        limited = sequences == 8
        assert (beside <= AT_MOST * alone) is limited, "without a limit the flood is felt: the test can tell"
