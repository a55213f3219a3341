"""Several engines behind one gateway: what one of them does costs only what was in flight on it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import ValidationError

from app.domain.engine_address import MAX_ENGINES
from app.load.client.engine import CONTROL_S
from app.load.fleet import fleet as fleet_module
from app.load.fleet.fleet import CROWDED_MORE, Fleet
from app.load.reconcile import reconciler as reconcile_module
from app.server.settings import Settings
from tests.support.gateway import SERVED, Running, form, gateway
from tests.support.simulator import Simulator
from tests.support.waiting import until


class Several:
    """A gateway over three simulated engines."""

    def __init__(self, running: Running, engines: list[Simulator]) -> None:
        self.running, self.engines = running, engines

    @property
    def fleet(self) -> Fleet:
        assert isinstance(self.running.gateway.reconciler, Fleet)
        return self.running.gateway.reconciler

    async def push(self, name: str, seed: int = 0) -> httpx.Response:
        answer = await self.running.http.post("/adapters", files=form(name, seed))
        assert answer.status_code == 201, answer.text
        return answer

    async def chat(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **more}
        return await self.running.http.post("/v1/chat/completions", json=body)

    async def asked(self) -> list[int]:
        """Requests that reached each engine so far (probes are completions, not chats)."""
        return [sum("messages" in body for body in engine.seen) for engine in self.engines]

    def home(self, name: str) -> Simulator:
        """Where requests for an adapter go while nothing is crowded."""
        (full_name,) = {n for engine in self.engines for n in engine.loaded if n.startswith(f"{name}@")}
        return self.engines[self.fleet.choose(full_name)[0].number - 1]

    async def metric(self, name: str, engine: int, result: str = "") -> float:
        text = (await self.running.http.get("/metrics")).text
        labels = f'engine="{engine}"' + (f',result="{result}"' if result else "")
        for line in text.splitlines():
            if line.startswith(f"{name}{{{labels}}} "):
                return float(line.rpartition(" ")[2])
        return 0.0


@pytest_asyncio.fixture
async def several(tiny_reference_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Several]:
    monkeypatch.setattr(reconcile_module, "DOWN_S", 0.05)
    monkeypatch.setattr(reconcile_module, "BACKOFF_S", 0.05)
    monkeypatch.setattr(fleet_module, "OTHERS_S", 0.3)
    engines = [Simulator(tmp_path / f"{n}.sock", SERVED) for n in (1, 2, 3)]
    for engine in engines:
        await engine.start()
    urls = ",".join(engine.url for engine in engines)
    async with gateway(tmp_path / "data", tiny_reference_dir, engines[0], engine_url=urls) as running:
        made = Several(running, engines)
        await until(lambda: all(member.caught_up for member in made.fleet.members))
        yield made
    for engine in engines:
        await engine.stop()


async def test_a_published_version_is_in_every_engine(several: Several) -> None:
    await several.push("a")
    assert len({tuple(engine.loaded.items()) for engine in several.engines}) == 1
    assert len(several.engines[0].loaded) == 1


async def test_an_adapter_keeps_to_one_engine_and_adapters_spread(several: Several) -> None:
    names = [f"a{n}" for n in range(12)]
    for seed, name in enumerate(names):
        await several.push(name, seed)
        for _ in range(3):
            assert (await several.chat(name)).json()["model"] == name
    homes: dict[str, set[int]] = {name: set() for name in names}
    for number, engine in enumerate(several.engines):
        for body in engine.seen:
            if "messages" in body:
                homes[body["model"].partition("@")[0]].add(number)
    assert all(len(at) == 1 for at in homes.values())
    assert set.union(*homes.values()) == {0, 1, 2}


async def test_the_served_model_goes_where_least_is_in_flight(several: Several) -> None:
    for _ in range(9):
        assert (await several.chat(SERVED)).status_code == 200
    assert await several.asked() == [3, 3, 3]
    busy = several.fleet.members[0]
    busy.flying += 1
    for _ in range(4):
        await several.chat(SERVED)
    busy.flying -= 1
    assert (await several.asked())[0] == 3


async def test_a_crowded_engine_is_passed_over(several: Several) -> None:
    await several.push("a")
    home = several.home("a")
    for engine in several.engines:
        engine.faults["chat"] = "slow"
    streams = [asyncio.create_task(several.chat("a", stream=True)) for _ in range(3 * (CROWDED_MORE + 3))]
    await until(lambda: sum(engine.running for engine in several.engines) == len(streams))
    counts = Counter({engine.socket.name: engine.running for engine in several.engines})
    assert counts.most_common(1)[0][0] == home.socket.name
    assert len(+counts) > 1, counts
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    await until(lambda: all(member.flying == 0 for member in several.fleet.members))


async def test_the_death_of_an_engine_costs_what_was_in_flight_and_nothing_else(several: Several) -> None:
    await several.push("a", 1)
    await several.push("b", 2)
    home = several.home("a")
    home.faults["chat"] = "slow"
    flying = [asyncio.create_task(several.chat("a", stream=True)) for _ in range(3)]
    await until(lambda: home.running == 3)
    await home.stop()
    for answer in await asyncio.gather(*flying):  # streams that had begun: told by an event, not cut
        assert answer.status_code == 200
        last = answer.text.rstrip().rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == "upstream_failed"
    for _ in range(30):  # at once, whether the watch has noticed or not
        for model in ("a", "a@1", "b", SERVED):
            answer = await several.chat(model)
            assert (answer.status_code, answer.json()["model"]) == (200, model)
    number = several.engines.index(home) + 1
    assert await several.metric("gateway_fleet_engine_up", number) == 0
    assert await several.metric("gateway_fleet_engine_requests_total", number, "broken") >= 3
    assert (await several.running.http.get("/ready")).status_code == 200


async def test_what_could_not_be_sent_goes_to_the_next_engine(several: Several) -> None:
    await several.push("a")
    home = several.home("a")
    await several.fleet.members[several.engines.index(home)].reconciler.stop()  # the watch is late
    await home.stop()
    assert (await several.chat("a")).status_code == 200
    number = several.engines.index(home) + 1
    assert await several.metric("gateway_fleet_engine_requests_total", number, "unreached") == 1
    assert (await several.chat("a")).status_code == 200
    assert await several.metric("gateway_fleet_engine_requests_total", number, "unreached") == 1  # known by then


async def test_what_an_engine_has_forgotten_is_asked_of_the_next_and_loaded_again(several: Several) -> None:
    await several.push("a")
    home = several.home("a")
    (name,) = home.loaded
    home.loaded.clear()  # a restart nobody has noticed yet
    answer = await several.chat("a")
    assert (answer.status_code, answer.json()["model"]) == (200, "a")
    await until(lambda: name in home.loaded)
    number = several.engines.index(home) + 1
    assert await several.metric("gateway_fleet_engine_requests_total", number, "forgotten") <= 1


async def test_an_engine_that_returns_gets_its_adapters_before_traffic(several: Several) -> None:
    for n in range(4):
        await several.push(f"a{n}", n)
    back = several.home("a0")
    await back.stop()
    await until(lambda: not several.fleet.members[several.engines.index(back)].reconciler.engine_up)
    back.seen.clear()
    back.faults["load"] = "hang"
    await back.start()
    await until(lambda: several.fleet.members[several.engines.index(back)].reconciler.engine_up)
    for _ in range(5):
        for model in ("a0", "a1", "a2", "a3", SERVED):
            assert (await several.chat(model)).status_code == 200
    assert back.seen == []
    back.faults.clear()
    await back.stop()  # what hangs is cut, and it comes back once more
    await back.start()
    reconciler = several.fleet.members[several.engines.index(back)].reconciler
    await until(lambda: len(reconciler.loaded) == len(back.loaded) == 4)
    assert (await several.chat("a0")).status_code == 200
    assert back.seen[-1]["model"].startswith("a0@")


async def test_a_slow_engine_delays_an_upload_only_so_long(several: Several) -> None:
    several.engines[1].faults["load"] = "hang"
    async with asyncio.timeout(CONTROL_S):
        await several.push("a")
    assert [len(engine.loaded) for engine in several.engines] == [1, 0, 1]
    for _ in range(4):
        assert (await several.chat("a")).status_code == 200
    assert (await several.asked())[1] == 0


async def test_one_engine_that_refuses_an_adapter_keeps_it_from_no_other(several: Several) -> None:
    several.engines[2].faults["load"] = "500"
    await several.push("a")
    for _ in range(4):
        assert (await several.chat("a")).status_code == 200
    assert (await several.asked())[2] == 0
    several.engines[2].faults.clear()
    await until(lambda: bool(several.engines[2].loaded))


async def test_an_adapter_that_every_engine_refuses_fails(several: Several) -> None:
    for engine in several.engines:
        engine.faults["load"] = "500"
    answer = await several.running.http.post("/adapters", files=form("a"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "load_failed")


async def test_an_engine_whose_core_is_dead_gets_nothing(several: Several) -> None:
    several.engines[0].faults["health"] = "503"
    await until(lambda: not several.fleet.members[0].reconciler.engine_up)
    for _ in range(6):
        assert (await several.chat(SERVED)).status_code == 200
    assert (await several.asked())[0] == 0


async def test_when_all_are_away_it_is_said_and_when_they_return_it_ends(several: Several) -> None:
    await several.push("a")
    for engine in several.engines:
        await engine.stop()
    await until(lambda: not several.fleet.engine_up)
    for model in ("a", SERVED):
        answer = await several.chat(model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert (await several.running.http.get("/ready")).status_code == 503
    await several.engines[2].start()
    await until(lambda: several.fleet.members[2].caught_up)
    assert (await several.chat("a")).status_code == 200


async def test_deleting_unloads_everywhere_and_only_then_are_the_files_removed(several: Several) -> None:
    await several.push("a")
    (path,) = set(several.engines[0].loaded.values())
    await several.engines[1].stop()  # it may still read the files: nobody can ask it
    kept = dict(several.engines[1].loaded)
    await several.running.http.delete("/adapters/a")
    await until(lambda: not several.engines[0].loaded and not several.engines[2].loaded)
    await asyncio.sleep(0.3)  # several passes
    assert Path(path).is_dir()
    await several.engines[1].start()
    several.engines[1].loaded |= kept
    await until(lambda: not several.engines[1].loaded and not Path(path).exists())


async def test_metrics_and_console_show_each_engine(several: Several) -> None:
    await several.push("a")
    for number in (1, 2, 3):
        assert await several.metric("gateway_fleet_engine_up", number) == 1
        assert await several.metric("gateway_fleet_engine_adapters", number) == 1
        assert await several.metric("gateway_fleet_engine_requests_in_flight", number) == 0
    await several.engines[1].stop()
    await until(lambda: not several.fleet.members[1].reconciler.engine_up)
    page = (await several.running.http.get("/")).text
    assert "2 of 3 answer" in page
    page = (await several.running.http.get("/console/engines")).text
    assert page.count("unix socket") == 3
    assert page.count('<span class="chip good">answers</span>') == 2
    assert "engine 1, 3; not in 1" in page
    told = (await several.running.http.get("/metrics/engine")).text
    lines = [line for line in told.splitlines() if line.startswith("vllm:num_requests_running{")]
    assert [line.partition('engine="')[2][0] for line in lines] == ["1", "3"]
    assert told.count("# TYPE vllm:num_requests_running ") == 1


async def test_an_audit_looks_at_every_engine(several: Several) -> None:
    await several.push("a")
    auditor = several.running.gateway.auditor
    assert (await asyncio.to_thread(auditor.look)).findings == ()
    (name,) = several.engines[2].loaded
    several.engines[2].loaded[name] = "/elsewhere"
    found = (await asyncio.to_thread(auditor.look)).findings
    assert [(one.invariant, one.what) for one in found] == [("I1", "reads /elsewhere")]
    assert "engine 3" in found[0].where
    several.engines[2].loaded[name] = several.engines[0].loaded[name]
    several.engines[1].loaded["mine"] = "/elsewhere"  # loaded by somebody else
    found = (await asyncio.to_thread(auditor.look)).findings
    assert [(one.invariant, one.where) for one in found] == [("I1", "engine name 'mine in engine 2'")]


async def test_with_an_inference_gateway_in_front_requests_go_there_and_adapters_everywhere(
    tiny_reference_dir: Path, tmp_path: Path
) -> None:
    engines = [Simulator(tmp_path / f"{n}.sock", SERVED) for n in (1, 2)]
    front = Simulator(tmp_path / "front.sock", SERVED)
    for one in (*engines, front):
        await one.start()
    front.loaded = engines[0].loaded  # it knows by itself who holds what
    urls = {"engine_url": ",".join(engine.url for engine in engines), "requests_url": front.url}
    async with gateway(tmp_path / "data", tiny_reference_dir, engines[0], **urls) as running:
        assert (await running.http.post("/adapters", files=form("a"))).status_code == 201
        assert engines[0].loaded == engines[1].loaded != {}
        assert front.loads == []
        body = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
        answer = await running.http.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["model"]) == (200, "a")
        assert [len(one.request_ids) for one in engines] == [1, 1]  # probes
        assert front.seen[0]["model"].startswith("a@")
    for one in (*engines, front):
        await one.stop()


def test_an_inference_gateway_stands_in_front_of_engines() -> None:
    with pytest.raises(ValidationError, match="in front of the engines"):
        Settings(model="m", reference=Path("r"), open=True, requests_url="http://x")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("http://a:1,http://a:1", "each engine once"),
        ("http://a:1,ftp://b", "an engine's URL"),
        ("http://user:word@a:1", "an engine's URL"),
        (",".join(f"http://e{n}:1" for n in range(MAX_ENGINES + 1)), "at most"),
    ],
)
def test_what_is_no_list_of_engines(wrong: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Settings(model="m", reference=Path("r"), open=True, engine_url=wrong)  # type: ignore[call-arg]
