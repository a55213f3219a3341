"""Roll-outs in tests: versions of one adapter, and users by the version that answers them."""

import asyncio
from collections import Counter
from itertools import count
from typing import Any

import httpx

from tests.support.gateway import Running, form
from tests.support.waiting import LOOK_S, STUCK_S

NAME = "style"
USERS = 40


async def push(running: Running, seed: int) -> Any:
    """One more version."""
    answer = await running.http.post("/adapters", files=form(NAME, seed))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def put(running: Running, **weights: Any) -> httpx.Response:
    """`put(running, v1=95, v2=5, shadow=2)`."""
    body = {name.removeprefix("v"): value for name, value in weights.items()}
    return await running.http.put(f"/adapters/{NAME}/traffic", json=body)


async def chat(running: Running, user: str | None = None, model: str = NAME, **more: Any) -> httpx.Response:
    """An answer to this user."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    return await running.http.post("/v1/chat/completions", json=body | ({} if user is None else {"user": user}))


async def version(running: Running, user: str | None = None, **more: Any) -> int:
    """The version that answers this user."""
    answer = await chat(running, user, **more)
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-adapter-version"])


async def versions(running: Running) -> Counter[int]:
    """Number of users, of USERS, that each version answers."""
    return Counter([await version(running, f"user {number}") for number in range(USERS)])


def user_of(running: Running, wanted: int) -> str:
    """Some user whom this version answers."""
    split = running.gateway.context.routing_table
    users = (f"user {number}" for number in count())
    return next(one for one in users if split.resolve(NAME, conversation=f"user {one}".encode()).version == wanted)


async def weights_are(gateways: list[Running], **weights: int) -> None:
    """Wait until every gateway follows this roll-out; without weights: none."""
    wanted = {int(name.removeprefix("v")): weight for name, weight in weights.items()}
    async with asyncio.timeout(STUCK_S):
        while any(_weights(running) != wanted for running in gateways):
            await asyncio.sleep(LOOK_S)


def _weights(running: Running) -> dict[int | None, int]:
    split = running.gateway.context.routing_table.snapshot.splits.get(NAME)
    return dict(Counter(target.version for target in split.slots)) if split else {}
