"""Engines that come and go under one name, behind a running gateway; DNS is a function, everything else is there."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import ValidationError

from app.domain.engine_address import MAX_ENGINES, DnsName
from app.gateway.engine_lists import engine_lists
from app.load.fleet import dns as discovery
from app.load.fleet.dns import DiscoveredFleet
from app.load.fleet.member import CheckedEngine
from app.load.reconcile import reconciler as reconcile_module
from app.load.reconcile.callbacks import Callbacks
from app.server.settings import Settings
from app.store.catalogue.queries import Name
from app.store.catalogue.tables import VersionRow
from tests.support.gateway import SERVED, Running, form, gateway
from tests.support.postgres import free_port
from tests.support.simulator import Simulator
from tests.support.waiting import STUCK_S, until


class Addressed(Simulator):
    """On an address of loopback. gate: while it is shut, requests that were begun are not answered."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__(Path("unused"), SERVED)
        self.address, self.port, self.url = address, port, f"http://{address}:{port}"
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def chats(self) -> int:
        return sum("messages" in body for body in self.seen)

    def _bound(self) -> socket.socket:
        return socket.create_server((self.address, self.port))

    async def _whole(
        self, request: web.Request, body: Mapping[str, Any], fault: str | None, *, chat: bool
    ) -> web.StreamResponse:
        await self.gate.wait()
        return await super()._whole(request, body, fault, chat=chat)


class Named:
    """A gateway whose engines are what `found` holds. found None: DNS does not answer. asked: how often it was asked."""

    def __init__(self, one: Addressed, two: Addressed) -> None:
        self.one, self.two = one, two
        self.found: set[str] | None = None
        self.asked = 0
        self.running: Running

    async def lookup(self, name: DnsName) -> frozenset[str]:
        assert name == DnsName("engines", self.one.port)
        self.asked += 1
        if self.found is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return frozenset(self.found)

    async def lead_to(self, *engines: Addressed) -> None:
        """DNS says so from now on, and the gateway has heard it."""
        self.found = {engine.url for engine in engines}
        await until(lambda: {member.engine.url for member in self.fleet.members} == self.found)

    @property
    def fleet(self) -> DiscoveredFleet:
        assert isinstance(self.running.gateway.reconciler, DiscoveredFleet)
        return self.running.gateway.reconciler

    async def push(self, name: str, seed: int = 0) -> httpx.Response:
        return await self.running.http.post("/adapters", files=form(name, seed))

    async def chat(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        return await self.running.http.post("/v1/chat/completions", json=body)

    async def shown(self) -> set[str]:
        """Numbers of the engines that metrics tell of."""
        text = (await self.running.http.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("gateway_fleet_engine_up{")]
        return {line.partition('engine="')[2].partition('"')[0] for line in lines}


@pytest_asyncio.fixture
async def named(tiny_reference_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Named]:
    monkeypatch.setattr(discovery, "LOOKUP_S", 0.02)
    monkeypatch.setattr(reconcile_module, "DOWN_S", 0.05)
    monkeypatch.setattr(reconcile_module, "BACKOFF_S", 0.05)
    port = free_port()
    made = Named(Addressed("127.0.0.1", port), Addressed("127.0.0.2", port))
    monkeypatch.setattr(discovery, "lookup", made.lookup)
    for engine in (made.one, made.two):
        await engine.start()
    url = f"dns+http://engines:{port}"
    async with gateway(tmp_path / "data", tiny_reference_dir, made.one, engine_url=url) as made.running:
        yield made
    for engine in (made.one, made.two):
        await engine.stop()


async def test_an_engine_that_appears_is_filled_before_it_is_asked(named: Named) -> None:
    await named.lead_to(named.one)
    for seed, name in enumerate(("a", "b")):
        assert (await named.push(name, seed)).status_code == 201
    named.two.faults["load"] = "hang"
    await named.lead_to(named.one, named.two)
    await until(lambda: named.two.running == 2)
    for _ in range(4):
        for model in ("a", "b", SERVED):
            assert (await named.chat(model)).status_code == 200
    assert named.two.chats == 0
    named.two.faults.clear()
    await named.two.stop()  # what hangs is cut, and it comes back
    await named.two.start()
    await until(lambda: named.two.loaded == named.one.loaded)
    await until(lambda: all(member.caught_up for member in named.fleet.members))
    await named.one.stop()
    for model in ("a", "b", SERVED):
        assert (await named.chat(model)).status_code == 200
    assert named.two.chats == 3
    assert await named.shown() == {"1", "2"}


async def test_one_that_disappears_ends_what_it_began_and_is_let_go(named: Named) -> None:
    await named.lead_to(named.one)
    assert (await named.push("a")).status_code == 201
    named.one.gate.clear()
    begun = asyncio.create_task(named.chat("a"))
    await until(lambda: named.one.chats == 1)
    await named.lead_to(named.two)
    await until(lambda: named.fleet.is_loaded(next(iter(named.one.loaded))))
    for model in ("a", SERVED):
        assert (await named.chat(model)).status_code == 200
    assert (named.one.chats, named.two.chats) == (1, 2)
    assert not begun.done()
    assert await named.shown() == {"1", "2"}
    named.one.gate.set()
    assert (await begun).status_code == 200
    await until(lambda: named.one.connections == 0)
    assert await named.shown() == {"2"}
    loads = list(named.one.loads)
    assert (await named.push("b", 1)).status_code == 201  # filled into those that belong, and no other
    assert (named.one.loads, len(named.two.loaded)) == (loads, 2)


async def test_one_that_comes_back_is_filled_again_under_a_number_that_is_free(named: Named) -> None:
    await named.lead_to(named.one, named.two)
    assert (await named.push("a")).status_code == 201
    await named.lead_to(named.two)
    await until(lambda: named.one.connections == 0)
    await named.one.stop()
    await named.one.start()  # another pod at the same address, empty
    await named.lead_to(named.one, named.two)
    await until(lambda: named.one.loaded == named.two.loaded)
    assert await named.shown() == {"1", "2"}
    version = (await named.running.http.get("/adapters/a")).json()["versions"][0]
    assert version["engine"]["loaded_in"] == [1, 2]


async def test_those_that_stay_share_what_comes_when_one_between_them_has_gone(named: Named) -> None:
    third = Addressed("127.0.0.3", named.one.port)
    await third.start()
    for engines in ((named.one,), (named.one, named.two), (named.one, named.two, third), (named.one, third)):
        await named.lead_to(*engines)
    await until(lambda: all(member.caught_up for member in named.fleet.members))
    assert [member.number for member in named.fleet.members] == [1, 3]
    for _ in range(6):
        assert (await named.chat(SERVED)).status_code == 200
    assert (named.one.chats, third.chats) == (3, 3)
    await third.stop()


async def test_when_dns_does_not_answer_everything_stays(named: Named, caplog: pytest.LogCaptureFixture) -> None:
    await named.lead_to(named.one, named.two)
    assert (await named.push("a")).status_code == 201
    caplog.set_level(logging.INFO, "gateway")
    named.found, asked = None, named.asked
    await until(lambda: named.asked > asked + 5)
    assert len(named.fleet.members) == 2
    assert (await named.chat("a")).status_code == 200
    told = [record for record in caplog.records if "cannot be looked up" in str(record.__dict__)]
    assert len(told) == 1
    await named.lead_to(named.two)


async def test_before_any_is_found_uploads_wait_and_requests_are_told(named: Named) -> None:
    assert not named.fleet.known, "whoever is there may read anything"
    pushed = await named.push("a")
    assert (pushed.status_code, pushed.json()["state"]) == (202, "stored")
    answer = await named.chat(SERVED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert (await named.running.http.get("/ready")).status_code == 503
    await named.lead_to(named.two)
    async with asyncio.timeout(STUCK_S):
        while (await named.chat("a")).status_code != 200:
            await asyncio.sleep(0.05)
    assert named.fleet.known


async def test_no_more_than_so_many(named: Named) -> None:
    named.found = {named.one.url, *(f"http://127.0.1.{n}:{named.one.port}" for n in range(MAX_ENGINES + 3))}
    await until(lambda: len(named.fleet.members) > 1)
    await asyncio.sleep(0.1)
    assert len(named.fleet.members) == MAX_ENGINES


async def test_an_audit_asks_those_that_are_there(named: Named) -> None:
    await named.lead_to(named.one)
    assert (await named.push("a")).status_code == 201
    auditor = named.running.gateway.auditor
    await named.lead_to(named.one, named.two)
    await until(lambda: named.two.loaded == named.one.loaded)
    await until(lambda: all(member.caught_up for member in named.fleet.members))
    assert (await asyncio.to_thread(auditor.look)).findings == ()
    (name,) = named.two.loaded
    named.two.loaded[name] = "/elsewhere"
    (found,) = (await asyncio.to_thread(auditor.look)).findings
    assert (found.invariant, found.what) == ("I1", "reads /elsewhere")
    listed = await engine_lists([f"dns+http://engines:{named.one.port}"])  # as the command asks
    assert f"{name} in engine 2" in listed


async def test_gateways_agree_whose_an_adapter_is_whatever_they_saw_first(monkeypatch: pytest.MonkeyPatch) -> None:
    urls, homes = [f"http://10.0.0.{n}:8000" for n in range(1, 6)], []
    for seen in (urls, urls[::-1]):
        fleet = DiscoveredFleet(DnsName("engines", 8000), CheckedEngine, Callbacks(dict, lambda *_: None))
        for count in range(1, len(urls) + 1):

            async def lookup(_: DnsName, now: frozenset[str] = frozenset(seen[:count])) -> frozenset[str]:
                return now

            monkeypatch.setattr(discovery, "lookup", lookup)
            await fleet.look()
        homes.append([max(fleet.members, key=lambda m: m.affinity(f"a@{n:012d}")).engine.url for n in range(50)])
    assert homes[0] == homes[1]
    assert len(set(homes[0])) == len(urls)


async def test_what_the_systems_resolver_says() -> None:
    assert await discovery.lookup(DnsName("localhost", 8000)) == {"http://127.0.0.1:8000"}
    assert await discovery.lookup(DnsName("::1", 8000)) == {"http://[::1]:8000"}
    with pytest.raises(OSError, match="no host name"):
        await discovery.lookup(DnsName("a..b", 8000))


async def test_a_gateway_finds_its_engine_by_the_systems_resolver(tiny_reference_dir: Path, tmp_path: Path) -> None:
    engine = Addressed("127.0.0.1", free_port())
    await engine.start()
    url = f"dns+http://localhost:{engine.port}"
    async with gateway(tmp_path / "data", tiny_reference_dir, engine, engine_url=url) as running:
        await until(lambda: running.gateway.reconciler.engine_up)
        assert (await running.http.post("/adapters", files=form("a"))).status_code == 201
        assert len(engine.loaded) == 1
    await engine.stop()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("dns+http://engines", "an engine's URL"),
        ("dns+http://engines:0", "an engine's URL"),
        ("dns+http://engines:70000", "an engine's URL"),
        ("dns+http://engines:8000/v1", "an engine's URL"),
        ("dns+http://user@engines:8000", "an engine's URL"),
        ("dns+https://engines:8000", "an engine's URL"),
        ("dns+http://engines:8000,http://a:8000", "stands alone"),
        ("dns+http://engines:8000,dns+http://others:8000", "stands alone"),
    ],
)
def test_what_is_no_name_of_engines(wrong: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Settings(model="m", reference=Path("r"), open=True, engine_url=wrong)  # type: ignore[call-arg]


def test_what_stands_in_front_is_one_place() -> None:
    names = {"engine_url": "dns+http://engines:8000", "requests_url": "dns+http://front:80"}
    with pytest.raises(ValidationError, match="requests_url is one URL"):
        Settings(model="m", reference=Path("r"), open=True, **names)  # type: ignore[arg-type]


async def test_a_version_is_published_though_the_engine_that_had_it_goes_meanwhile(
    named: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    await named.lead_to(named.one)
    catalogue = named.running.gateway.context.uploads.components.catalogue
    activate, begun, go_on = catalogue.activate, threading.Event(), threading.Event()

    def slow(name: Name, number: int, evaluation: str | None) -> VersionRow:
        begun.set()
        assert go_on.wait(10)
        return activate(name, number, evaluation)

    monkeypatch.setattr(catalogue, "activate", slow)
    answer = await named.running.http.post("/adapters", files=form("style"), params={"wait": "false"})
    assert answer.status_code == 202
    assert await asyncio.to_thread(begun.wait, 10)
    await named.lead_to()
    await asyncio.sleep(0.1)  # the keeper of the one that went is stopped
    go_on.set()
    async with asyncio.timeout(STUCK_S):
        while (await named.running.http.get("/adapters/style")).json()["active_version"] != 1:
            await asyncio.sleep(0.02)
    await named.lead_to(named.two)
    async with asyncio.timeout(STUCK_S):
        while (await named.chat("style")).status_code != 200:
            await asyncio.sleep(0.02)
