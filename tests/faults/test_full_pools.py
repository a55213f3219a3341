"""One kind of blocking work that takes every thread it can get: what is of another kind goes on."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from app.concurrency.pools import Pools
from app.gateway.policy_recheck import PolicyRecheck
from app.gateway.uploads import Uploads
from app.observe.metrics import Metrics
from app.screen.reference.open import Reference
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from tests.support.gateway import OpenHouse, Running, form
from tests.support.holding import Held
from tests.support.waiting import STUCK_S

PATIENCE_S = 10.0
"""Seconds that a request may take beside the held work; on a busy machine too."""

CHAT = {"model": "kept", "messages": [{"role": "user", "content": "hello"}]}


def push(running: Running, name: str, seed: int = 0) -> Awaitable[Any]:
    return running.http.post("/adapters", files=form(name, seed))


def screenings(running: Running) -> list[Awaitable[Any]]:
    return [*(push(running, f"held{n}", n + 10) for n in range(4)), running.http.post("/adapters/kept/rescreen")]


def deletes(running: Running) -> list[Awaitable[Any]]:
    return [running.http.delete("/adapters/doomed") for _ in range(8)]


def followed(running: Running) -> list[Awaitable[Any]]:
    return [*(push(running, f"new{n}", n + 10) for n in range(4)), running.http.delete("/adapters/doomed")]


def looks(path: str) -> Callable[[Running], list[Awaitable[Any]]]:
    return lambda running: [running.http.get(path) for _ in range(8)]


@dataclass(frozen=True)
class Kind:
    """What takes every thread. spoilt: requests of the same kind, which wait with it. calls: held at the same time."""

    methods: tuple[tuple[Any, str], ...]
    requests: Callable[[Running], list[Awaitable[Any]]]
    calls: int
    spoilt: frozenset[tuple[str, str]] = frozenset()


KINDS = {
    "screening": Kind(((Uploads, "_measure_and_store"), (Uploads, "_restore_artefact")), screenings, 5),
    "changes": Kind(((Catalogue, "delete"),), deletes, 4, frozenset({("DELETE", "/adapters/doomed")})),
    "following": Kind(((PolicyRecheck, "check"),), followed, 1, frozenset({("DELETE", "/adapters/doomed")})),
    "fetching": Kind(((BlobStore, "touch"),), looks("/resolve/kept@1"), 4),
    "readiness": Kind(((Reference, "check_unchanged"),), looks("/ready"), 2, frozenset({("GET", "/ready")})),
    "scrapes": Kind(((Metrics, "exposition"),), looks("/metrics"), 1, frozenset({("GET", "/metrics")})),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_work_that_fills_its_pool_holds_up_no_other_kind(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # the loop's own executor then has five threads
    what = KINDS[kind]
    async with open_gateway(tau=1e9, keep_originals=True) as running:
        for name, seed in (("kept", 1), ("doomed", 2)):
            assert (await push(running, name, seed)).status_code == 201
        async with holding(running, what, monkeypatch) as filled:
            for method, path in (
                ("GET", "/ready"),
                ("GET", "/adapters"),
                ("GET", "/adapters/kept"),
                ("GET", "/metrics"),
                ("DELETE", "/adapters/doomed"),
            ):
                if (method, path) not in what.spoilt:
                    await answered(running, method, path)
            await answered(running, "POST", "/v1/chat/completions", json=CHAT)
        await asyncio.gather(*filled)


@asynccontextmanager
async def holding(
    running: Running, what: Kind, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sequence[asyncio.Future[Any]]]:
    held = Held()
    with monkeypatch.context() as patch:
        for owner, name in what.methods:
            held.hold(patch, owner, name)
        filled = [asyncio.ensure_future(request) for request in what.requests(running)]
        try:
            await held.until(what.calls)
            yield filled
        finally:
            held.go_on.set()


async def answered(running: Running, method: str, path: str, **options: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        answer = await running.http.request(method, path, **options)
    assert answer.status_code in (200, 204), f"{method} {path}: {answer.text}"


def bare(engine_names: Iterable[str]) -> set[str]:
    """Adapters' names of the engine's names for their versions."""
    return {name.partition("@")[0] for name in engine_names}


async def test_garbage_that_takes_for_ever_stops_no_reconcile_pass(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_gateway(tau=1e9) as running:
        for name, seed in (("kept", 1), ("doomed", 2), ("doomed2", 3)):
            assert (await push(running, name, seed)).status_code == 201
        held = Held()
        with monkeypatch.context() as patch:
            held.hold(patch, type(running.gateway.context.uploads.components.blobs), "collect")
            try:
                await answered(running, "DELETE", "/adapters/doomed")
                await held.until(1)
                await answered(running, "DELETE", "/adapters/doomed2")
                for path in ("/ready", "/adapters", "/metrics"):
                    await answered(running, "GET", path)
                assert (await push(running, "late", 4)).status_code == 201
                running.simulator.loaded.clear()  # as after a restart
                async with asyncio.timeout(PATIENCE_S):
                    while not {"kept", "late"} <= bare(running.simulator.loaded):
                        await asyncio.sleep(0.02)
                    while not {"kept", "late"} <= bare(running.gateway.reconciler.loaded):  # probed, too
                        await asyncio.sleep(0.02)
                await answered(running, "POST", "/v1/chat/completions", json=CHAT)
            finally:
                held.go_on.set()
        artefacts = running.data / "artefacts"
        async with asyncio.timeout(STUCK_S):
            while len([path for path in artefacts.iterdir() if path.name[0] != "." and path.is_dir()]) > 2:
                await asyncio.sleep(0.02)


async def test_a_screening_under_way_at_the_end_is_over_before_the_store_is_closed(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sandbox's end fails is still recorded, and nothing is written to a store that others may have opened."""
    held, order = Held(), list[str]()
    work, close_pools, close = Uploads._measure_and_store, Pools.close, Catalogue.close

    def screens(*args: Any) -> Any:
        row = work(*args)
        order.append(row.state.value)
        return row

    def closing(pools: Pools) -> None:
        threading.Timer(0.05, held.go_on.set).start()  # when the threads are waited for already
        close_pools(pools)

    def closed(catalogue: Catalogue) -> None:
        order.append("closed")
        close(catalogue)

    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "_measure_and_store", screens)
        held.hold(patch, Uploads, "_measure_and_store")
        patch.setattr(Pools, "close", closing)
        patch.setattr(Catalogue, "close", closed)
        async with open_gateway(tau=1e9) as running:
            pushed = asyncio.ensure_future(push(running, "late"))
            await held.until(1)
        pushed.cancel()
        await asyncio.wait({pushed})
    assert order == ["stored", "closed"]
