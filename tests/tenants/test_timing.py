"""Timing of refusals: another tenant's name takes as long as one that nobody has."""

import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from app.domain.api_keys import Role, new_key
from tests.support.gateway import OpenHouse, Running, form

KEYS: Final = {
    tenant: new_key(f"{tenant}-app", [Role.UPLOAD, Role.CHAT, Role.ADMIN], tenant=tenant)
    for tenant in ("acme", "globex")
}
NAMES: Final = ("theirs", "nobody")
"""Name of an adapter that globex has, and one of the same length that nobody has."""

PAIRS: Final = 300
FAIR: Final = (0.3, 0.7)
"""Share of pairs in which one is the slower: a half, if both take as long. Chance alone hardly ever leaves this range
runs; whatever slows the machine slows either of a pair with the same chance."""


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Running]:
    file = tmp_path / "keys"
    file.write_text("".join(f"{stored.line}\n" for _, stored in KEYS.values()))
    async with open_gateway(api_keys_file=file) as made:
        assert (await ask(made, "globex", "POST", "/adapters", files=form("theirs"))).status_code == 201
        yield made


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {KEYS[who][0]}"}, **sent)


async def slower(running: Running, who: str, method: str, path: str, **sent: Any) -> tuple[float, set[int]]:
    """Share of pairs in which the first name took longer, and the statuses. Each pair is asked in an order of its own."""

    async def seconds(name: str) -> float:
        given = {key: value | {"model": name} for key, value in sent.items()}
        began = time.perf_counter()
        answer = await ask(running, who, method, path.replace("{name}", name), **given)
        took = time.perf_counter() - began
        statuses.add(answer.status_code)
        return took

    statuses: set[int] = set()
    choose, first = random.Random(0), 0
    for _ in range(PAIRS):
        order = choose.sample(NAMES, 2)
        taken = {name: await seconds(name) for name in order}
        first += taken[NAMES[0]] > taken[NAMES[1]]
    return first / PAIRS, statuses


@pytest.mark.hostile("T01")
@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("GET", "/adapters/{name}", {}),
        ("GET", "/adapters/{name}/versions/1", {}),
        ("DELETE", "/adapters/{name}", {}),
        ("GET", "/v1/models/{name}", {}),
        ("POST", "/v1/chat/completions", {"json": {"messages": [{"role": "user", "content": "hello"}]}}),
    ],
    ids=["adapter", "version", "delete", "model", "chat"],
)
async def test_anothers_name_takes_as_long_as_nobodys(
    running: Running, method: str, path: str, sent: dict[str, Any]
) -> None:
    share, statuses = await slower(running, "acme", method, path, **sent)
    assert statuses == {404}
    assert FAIR[0] < share < FAIR[1]


async def test_a_difference_would_be_seen(running: Running) -> None:
    """Its own tenant is answered with the adapter, which takes longer than a refusal."""
    share, statuses = await slower(running, "globex", "GET", "/adapters/{name}")
    assert statuses == {200, 404}
    assert not FAIR[0] < share < FAIR[1]
