"""The same bytes again after a failure: the same version tries again, so that repeating fills no catalogue."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.domain.errors import LOAD_FAILED, SCREENING_KILLED, SCREENING_TIMEOUT, STORE_FAILED, Code, Refused, Unavailable
from app.domain.names import AdapterName
from app.gateway.version_refused import VersionRefused
from app.store.audit.audit import Promise
from tests.store.making import begin_again
from tests.support.audited import rested
from tests.support.gateway import Running, form
from tests.support.waiting import STUCK_S

REPEATS = 5
AT_ONCE = 4  # uploads one key may have under way
NAME = AdapterName("style")


async def push(running: Running, seed: int = 0, **params: str) -> httpx.Response:
    return await running.http.post("/adapters", files=form("style", seed), params=params)


async def numbers(running: Running) -> list[int]:
    versions = (await running.http.get("/adapters/style")).json()["versions"]
    return [version["version"] for version in versions]


async def until_ready(running: Running, number: int) -> None:
    async with asyncio.timeout(STUCK_S):
        while (await running.http.get("/adapters/style")).json()["active_version"] != number:
            await asyncio.sleep(0.02)


async def chat(running: Running) -> httpx.Response:
    body = {"model": "style", "messages": [{"role": "user", "content": "hello"}]}
    return await running.http.post("/v1/chat/completions", json=body)


def artefacts(running: Running) -> list[str]:
    return [entry.name for entry in (running.data / "artefacts").iterdir() if entry.name[0] != "."]


@contextmanager
def refusing(running: Running) -> Iterator[None]:
    """The engine takes no adapter."""
    running.simulator.faults["load"] = "lie"
    yield
    del running.simulator.faults["load"]


def measured_never(*_: object, **__: object) -> None:
    raise AssertionError("it was measured again")


async def test_what_the_engine_refuses_stays_one_version_and_is_served_once_it_takes_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(running):
        first = await push(running)
        monkeypatch.setattr("app.sandbox.sanitise.screen", measured_never)
        tries = len(running.simulator.loads)
        for answer in [first, *[await push(running) for _ in range(REPEATS)]]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "load_failed")
            assert (answer.json()["version"]["version"], answer.json()["version"]["state"]) == (1, "failed")
        assert len(running.simulator.loads) >= tries + REPEATS, "it was not tried again"
        assert await numbers(running) == [1]
        assert len(artefacts(running)) == 1
        await rested(running)
    served = await push(running)
    assert (served.status_code, served.json()["version"], served.json()["state"]) == (201, 1, "ready")
    assert served.json()["error"] is None
    assert (await push(running)).status_code == 200
    assert (await chat(running)).headers["x-adapter-version"] == "1"
    await rested(running, [Promise("style", 1, served.json()["digest"])])


async def test_without_waiting_it_is_stored_again_and_published_by_itself(running: Running) -> None:
    with refusing(running):
        await push(running)
    answer = await push(running, wait="false")
    assert (answer.status_code, answer.json()["state"], answer.json()["version"]) == (202, "stored", 1)
    await until_ready(running, 1)


async def test_with_the_engine_away_it_waits_for_it(running: Running) -> None:
    with refusing(running):
        await push(running)
    await running.simulator.stop()
    answer = await push(running)
    assert (answer.status_code, answer.json()["state"], answer.json()["version"]) == (202, "stored", 1)
    await running.simulator.start()
    await until_ready(running, 1)
    await rested(running, [Promise("style", 1)])


async def test_who_leaves_before_it_is_followed_leaves_nothing_waiting_for_ever(running: Running) -> None:
    with refusing(running):
        await push(running)
    begin_again(running.gateway.context.uploads.components.catalogue, NAME, 1, intact=True)  # and nobody is told
    await until_ready(running, 1)


async def test_an_artefact_that_is_gone_is_made_anew(running: Running) -> None:
    with refusing(running):
        await push(running)
        (digest,) = artefacts(running)
        folder = running.data / "artefacts" / digest
        folder.chmod(0o755)
        shutil.rmtree(folder)
        assert (await push(running)).json()["version"]["version"] == 1
        assert artefacts(running) == [digest]
    assert (await push(running)).json()["state"] == "ready"
    await rested(running, [Promise("style", 1, digest)])


async def test_behind_a_later_version_it_is_a_new_one_once(running: Running) -> None:
    with refusing(running):
        await push(running, seed=1)
    assert (await push(running, seed=2)).json()["version"] == 2
    with refusing(running):
        again = [(await push(running, seed=1)).json()["version"]["version"] for _ in range(REPEATS)]
    assert again == [3] * REPEATS
    assert await numbers(running) == [3, 2, 1]
    served = await push(running, seed=1)
    assert (served.json()["version"], served.json()["active"]) == (3, True)
    await rested(running, [Promise("style", 2), Promise("style", 3)])


async def test_together_they_are_one_version_and_all_are_told(running: Running) -> None:
    with refusing(running):
        await push(running)
        answers = await asyncio.gather(*(push(running) for _ in range(AT_ONCE)))
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(502, "load_failed")}
        assert await numbers(running) == [1]
        await rested(running)
    answers = await asyncio.gather(*(push(running) for _ in range(AT_ONCE)))
    assert {answer.json()["version"] for answer in answers} == {1}
    assert sorted(answer.status_code for answer in answers) == [200] * (AT_ONCE - 1) + [201]
    await rested(running, [Promise("style", 1)])


@pytest.mark.parametrize("overtaken", [True, False])
async def test_a_late_refusal_fails_only_the_try_that_it_was_of(
    running: Running, monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    await running.gateway.reconciler.stop()  # it would load by itself
    await push(running, wait="false")
    components, publishing = running.gateway.context.uploads.components, running.gateway.context.uploads.publishing
    row, ensure, refusals = components.catalogue.version("style", 1), components.reconciler.ensure, [LOAD_FAILED]

    async def refused_once(name: str) -> None:
        if refusals:
            raise Unavailable(refusals.pop(), "no")
        await ensure(name)

    monkeypatch.setattr(components.reconciler, "ensure", refused_once)
    if overtaken:
        row = replace(row, revision=row.revision - 1)
        assert (await publishing.load(row)).state == "ready"
    else:
        with pytest.raises(VersionRefused):
            await publishing.load(row)
        assert components.catalogue.version("style", 1).state == "failed"


def broken(kind: str, running: Running, patch: pytest.MonkeyPatch) -> None:
    """From here on uploads fail in this way."""

    def raising(error: Exception) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    limits: dict[str, Code] = {"screening_killed": SCREENING_KILLED, "screening_timeout": SCREENING_TIMEOUT}
    if kind == "store_failed":
        blobs = running.gateway.context.uploads.components.blobs
        patch.setattr(blobs, "put", raising(Unavailable(STORE_FAILED, "the disk is broken")))
    else:
        error = Refused(limits[kind], "the machine was busy") if kind in limits else RuntimeError("a bug")
        patch.setattr("app.sandbox.sanitise.screen", raising(error))


@pytest.mark.parametrize("kind", ["screening_failed", "store_failed", "screening_killed", "screening_timeout"])
async def test_what_fails_for_other_reasons_stays_one_version_too(
    running: Running, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with monkeypatch.context() as patch:
        broken(kind, running, patch)
        one_by_one = [await push(running) for _ in range(REPEATS)]
        together = await asyncio.gather(*(push(running) for _ in range(AT_ONCE)))
        assert {answer.json()["error"]["code"] for answer in (*one_by_one, *together)} == {kind}
        assert await numbers(running) == [1]
        await rested(running)
    served = await push(running)
    assert (served.status_code, served.json()["version"], served.json()["state"]) == (201, 1, "ready")
    watched = (await running.http.get("/adapters/style/events")).text
    states = [
        state for state in ("failed", "rejected", "received", "stored", "ready") if f'"state": "{state}"' in watched
    ]
    assert states == ["received", "stored", "ready"], "who watches is told of this try only"
    await rested(running, [Promise("style", 1)])
