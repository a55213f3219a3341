"""Any order of uploads, deletions, rollbacks, restarts and engine restarts, some at the same moment: after every step the
auditor finds nothing broken, what was acknowledged is there, numbers only grow, and every name is answered by its own.
"""

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app.domain.tenants import split_name
from app.domain.version_state import IN_FLIGHT, State
from app.store.audit.audit import Promise
from tests.support.audited import rested
from tests.support.gateway import SERVED, Running, form, gateway
from tests.support.simulator import Simulator

RUNS: Final = int(os.environ.get("LIFECYCLE_RUNS", "6"))
STEPS: Final = int(os.environ.get("LIFECYCLE_STEPS", "15"))
"""`make lifecycle LIFECYCLE_RUNS=…` for longer."""

PATIENCE_S: Final = 20.0
UNDER_WAY: Final = {state.value for state in (*IN_FLIGHT, State.STORED)}
NAMES: Final = ("first", "second", "third", "acme/first")
"""The last is a tenant's, and the first's namesake."""

TENANTS: Final = ("default", "acme")
SEEDS: Final = 3
names = st.sampled_from(NAMES)
uploads = st.tuples(names, st.integers(0, SEEDS - 1))


class Life(RuleBasedStateMachine):
    """One data directory and one simulated engine; gateways come and go. promised: (name, number) → artefact digest."""

    reference: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.data = Path(self.folder.name) / "data"
        self.simulator = Simulator(Path(self.folder.name) / "e.sock", SERVED)
        self.promised: dict[tuple[str, int], str | None] = {}
        self.highest = dict.fromkeys(NAMES, 0)
        self.refused: set[tuple[str, int]] = set()
        self.gateway = AsyncExitStack()
        self.running: Running | None = None

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it to its end on the one loop."""
        return self.runner.run(work)

    @property
    def http(self) -> httpx.AsyncClient:
        assert self.running is not None
        return self.running.http

    async def open(self) -> None:
        self.gateway = AsyncExitStack()
        made = gateway(self.data, self.reference, self.simulator)
        self.running = await self.gateway.enter_async_context(made)

    @initialize()
    def begin(self) -> None:
        self.do(self.simulator.start())
        self.do(self.open())

    def teardown(self) -> None:
        self.do(self.gateway.aclose())
        self.do(self.simulator.stop())
        self.runner.close()
        self.folder.cleanup()

    # ---- what can happen ---------------------------------------------------------------------------------------------

    @rule(sent=st.lists(uploads, min_size=1, max_size=4), wait=st.booleans())
    def upload(self, sent: list[tuple[str, int]], wait: bool) -> None:
        answers = self.do(self._all(*(self._upload(name, seed, wait) for name, seed in sent)))
        before = dict(self.highest)
        for (name, _), answer in zip(sent, answers, strict=True):
            assert answer.status_code in (200, 201, 202), answer.text
            assert (
                answer.status_code != 201
                or answer.json()["version"] > before[name]
                or self._failed_before(name, answer)
            )
            self._promise(name, answer)
        if len(sent) == 1 and answers[0].status_code == 201:
            assert self._active(sent[0][0]) == answers[0].json()["version"]

    @rule(bad=names, times=st.integers(1, 3))
    def upload_what_is_refused(self, bad: str, times: int) -> None:
        sent = form(split_name(bad)[1])
        sent["config"] = ("c", sent["config"][1].replace(b'"use_dora": false', b'"use_dora": true'))
        answers = self.do(self._all(*(self._about(bad, "POST", None, files=sent) for _ in range(times))))
        assert {answer.status_code for answer in answers} == {422}
        numbers = {answer.json()["version"]["version"] for answer in answers}
        assert len(numbers) == 1
        self.highest[bad] = max(self.highest[bad], *numbers)

    @rule(name=names, seed=st.integers(0, SEEDS - 1), times=st.integers(1, 3))
    def upload_what_the_engine_refuses(self, name: str, seed: int, times: int) -> None:
        """However often, it is at most one version more; what was there before is told so."""
        self.simulator.faults["load"] = "lie"
        answers = [self.do(self._upload(name, seed, True)) for _ in range(times)]
        del self.simulator.faults["load"]
        assert {answer.status_code for answer in answers} in ({502}, {200}), [answer.text for answer in answers]
        told = [answer.json() if answer.is_success else answer.json()["version"] for answer in answers]
        (number,) = {version["version"] for version in told}
        self.highest[name] = max(self.highest[name], number)
        if answers[0].status_code == 502:
            self.refused.add((name, number))

    @rule(name=names)
    def delete(self, name: str) -> None:
        answer = self.do(self._about(name, "DELETE"))
        assert answer.status_code in (204, 404), answer.text
        self._forget(name)
        assert self.do(self._about(name, "GET")).status_code == 404
        assert self._chat(name).status_code == 404

    @rule(name=names, seed=st.integers(0, SEEDS - 1), other=uploads)
    def delete_while_uploading(self, name: str, seed: int, other: tuple[str, int]) -> None:
        work = (self._upload(name, seed, True), self._about(name, "DELETE"), self._upload(*other, True))
        mine, deleted, others = self.do(self._all(*work))
        assert deleted.status_code in (204, 404)
        assert mine.status_code in (200, 201, 404, 409, 503), mine.text
        if other[0] != name:
            assert others.status_code in (200, 201), others.text
            self._promise(other[0], others)
        for answer in (mine, others):
            number = answer.json().get("version") if answer.is_success else None
            if number is not None and answer in (mine, *([others] if other[0] == name else [])):
                self.highest[name] = max(self.highest[name], number)
        self._forget(name)
        for version in self._listed(name):  # which of the two came first, the catalogue knows
            if version["state"] in ("ready", "retired", "stored"):
                self.promised[name, version["version"]] = version["digest"]

    @rule(name=names, back=st.integers(0, 3))
    def rollback(self, name: str, back: int) -> None:
        there = [version for version in self._listed(name) if version["model"] is not None]
        if not there:
            assert self.do(self._about(name, "POST", "/rollback")).status_code in (404, 409)
            return
        to = there[back % len(there)]["version"]
        answer = self.do(self._about(name, "POST", "/rollback", to=to))
        assert answer.status_code == 200, answer.text
        assert self._active(name) == to

    @rule()
    def restart_the_gateway(self) -> None:
        self.do(self._settled())
        active = {name: self._active(name) for name in NAMES}
        self.do(self.gateway.aclose())
        self.do(self.open())
        self.do(rested(self._open, self._promises))
        assert {name: self._active(name) for name in NAMES} == active

    @rule()
    def restart_the_engine(self) -> None:
        self.do(self.simulator.stop())
        self.do(self.simulator.start())

    # ---- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_broken(self) -> None:
        if self.running is None:
            return
        self.do(self._settled())
        self.do(rested(self._open, self._promises))
        for name in NAMES:
            active, listed = self._active(name), self._listed(name)
            assert all(version["version"] <= self.highest[name] for version in listed), (name, self.highest)
            assert [version["version"] for version in listed if version["active"]] == ([active] if active else [])
            assert self._answered(name) == active
        for name, number in self.promised:  # pinned to a number, it is answered by that one
            if self._version(name, number)["model"] is not None:
                assert self._answered(f"{name}@{number}") == number

    # ---- asking ------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Running:
        assert self.running is not None
        return self.running

    @property
    def _promises(self) -> list[Promise]:
        return [Promise(name, number, artefact) for (name, number), artefact in self.promised.items()]

    async def _settled(self) -> None:
        """Until nothing is on its way any more: the engine is up, so whatever is stored becomes ready."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                pages = [await self.http.get("/adapters", params={"tenant": tenant}) for tenant in TENANTS]
                found = [adapter for page in pages for adapter in page.json()["adapters"]]
                states = {version["state"] for adapter in found for version in adapter["versions"]}
                if not states & UNDER_WAY:
                    return
                await asyncio.sleep(0.02)

    async def _all(self, *work: Coroutine[Any, Any, httpx.Response]) -> list[httpx.Response]:
        return list(await asyncio.gather(*work))

    async def _upload(self, name: str, seed: int, wait: bool) -> httpx.Response:
        return await self._about(name, "POST", None, files=form(split_name(name)[1], seed), wait=str(wait).lower())

    async def _about(
        self, name: str, method: str, rest: str | None = "", files: Any = None, **query: Any
    ) -> httpx.Response:
        """A request about an adapter, in its tenant. rest: of the path; None: the name stands in the body."""
        tenant, plain = split_name(name)
        path = "/adapters" if rest is None else f"/adapters/{plain}{rest}"
        return await self.http.request(method, path, files=files, params={"tenant": tenant, **query})

    def _promise(self, name: str, answer: httpx.Response) -> None:
        said = answer.json()
        note(f"{name}@{said['version']}: {answer.status_code}")
        self.promised[name, said["version"]] = said["digest"]
        self.highest[name] = max(self.highest[name], said["version"])

    def _forget(self, name: str) -> None:
        self.promised = {at: digest for at, digest in self.promised.items() if at[0] != name}

    def _listed(self, name: str) -> list[dict[str, Any]]:
        answer = self.do(self._about(name, "GET"))
        return list(answer.json()["versions"]) if answer.status_code == 200 else []

    def _failed_before(self, name: str, answer: httpx.Response) -> bool:
        """Whether it is a version that the engine refused, taken by now."""
        return (name, answer.json()["version"]) in self.refused

    def _version(self, name: str, number: int) -> dict[str, Any]:
        answer = self.do(self._about(name, "GET", f"/versions/{number}"))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def _active(self, name: str) -> int | None:
        answer = self.do(self._about(name, "GET"))
        return answer.json()["active_version"] if answer.status_code == 200 else None

    def _chat(self, model: str) -> httpx.Response:
        found: httpx.Response = self.do(self._told(model))
        return found

    async def _told(self, model: str) -> httpx.Response:
        """Its answer; who is told to wait waits."""
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self.http.post("/v1/chat/completions", json=body)).status_code == 503:
                await asyncio.sleep(0.02)
        return answer

    def _answered(self, model: str) -> int | None:
        """The number of the version that answers, by its own name and no other's; None where none does."""
        answer = self._chat(model)
        if answer.status_code != 200:
            assert answer.status_code == 404, answer.text
            return None
        assert answer.json()["model"] == model
        assert (
            answer.json()["choices"][0]["message"]["content"] == f"words of {model.partition('@')[0].replace('/', '~')}"
        )
        return int(answer.headers["x-adapter-version"])


@pytest.mark.slow
def test_whatever_happens_nothing_is_broken(tiny_reference_dir: Path) -> None:
    Life.reference = tiny_reference_dir
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=RUNS < 20,
            database=None,
            phases=[Phase.generate] if RUNS < 20 else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
