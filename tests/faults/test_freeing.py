"""Gigabytes of an upload are freed in a thread, however the upload ends: the event loop answers chat meanwhile."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httpx
import pytest

from app.domain.errors import STORE_FAILED, Unavailable
from app.store.catalogue.catalogue import Catalogue
from app.upload.quarantine import SealedFile, UnsealedFile
from tests.support.cancelling import Moment, ends_before
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.waiting import STUCK_S

CHAT = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}], "stream": True}


class Freed:
    """Threads that freed an upload's bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[int] = []
        self.before_each: Callable[[], object] = lambda: None
        close, discard = SealedFile.close, UnsealedFile.discard

        def closed(file: SealedFile) -> None:
            if not file.file.closed:
                self._note()
            close(file)

        def discarded(file: UnsealedFile) -> None:
            if not file._settled:
                self._note()
            discard(file)

        monkeypatch.setattr(SealedFile, "close", closed)
        monkeypatch.setattr(UnsealedFile, "discard", discarded)

    def _note(self) -> None:
        self.threads.append(threading.get_ident())
        self.before_each()

    def off_the_loop(self) -> None:
        assert self.threads
        assert threading.get_ident() not in self.threads


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> Freed:
    return Freed(monkeypatch)


async def push(running: Running, name: str, seed: int = 0, path: str = "/adapters", digest: str | None = None) -> Any:
    headers = {} if digest is None else {"x-weights-sha256": digest}
    return await running.http.post(path, files=form(name, seed), headers=headers)


def push_bad(running: Running, name: str, path: str = "/adapters") -> Awaitable[Any]:
    return running.http.post(path, files=form(name, 2) | {"config": ("adapter_config.json", b"{}")})


def push_parts(running: Running, **parts: Any) -> Awaitable[Any]:
    """The weights first: they have arrived when what follows is refused."""
    return running.http.post("/adapters", files={"weights": form("mine")["weights"], **parts})


async def push_cut_off(running: Running) -> Any:
    whole = httpx.Request("POST", "http://gateway/adapters", files=form("mine"))
    body = whole.read()
    headers = {"content-type": whole.headers["content-type"], "content-length": str(len(body))}
    return await running.http.post("/adapters", content=body[:-200], headers=headers)


async def push_without_catalogue(running: Running) -> Any:
    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable(STORE_FAILED, "the catalogue is away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalogue, "begin", away)
        return await push(running, "mine")


LARGE = ("adapter_config.json", b" " * 70_000)
NAME = (None, b"mine")
ENDS: dict[str, tuple[Callable[[Running], Awaitable[Any]], int]] = {
    "a part is missing": (lambda it: push_parts(it, name=NAME), 400),
    "a part is too large": (lambda it: push_parts(it, config=LARGE, name=NAME), 413),
    "the body is cut off": (push_cut_off, 400),
    "another digest was announced": (lambda it: push(it, "mine", digest="0" * 64), 422),
    "the name is reserved": (lambda it: push(it, SERVED), 409),
    "the name differs in case": (lambda it: push(it, "KEPT", 3), 409),
    "the catalogue is away": (push_without_catalogue, 500),
    "it was refused before": (lambda it: push_bad(it, "bad"), 400),
    "it is refused": (lambda it: push_bad(it, "mine"), 400),
    "it is served": (lambda it: push(it, "mine", 4), 201),
    "it is known": (lambda it: push(it, "kept", 1), 200),
    "a dry run": (lambda it: push(it, "mine", 4, "/screen"), 200),
    "a dry run is refused": (lambda it: push_bad(it, "mine", "/screen"), 400),
    "a rescreening": (lambda it: it.http.post("/adapters/kept/rescreen"), 200),
}
"""How an upload may end: its request, and the status of the answer."""


@pytest.mark.parametrize("end", ENDS)
async def test_what_arrived_is_freed_off_the_event_loop(open_gateway: OpenHouse, freed: Freed, end: str) -> None:
    ask, status = ENDS[end]
    async with open_gateway(tau=1e9, keep_originals=True) as running:
        assert (await push(running, "kept", 1)).status_code == 201
        assert (await push_bad(running, "bad")).status_code == 400
        freed.threads.clear()
        answer = await ask(running)
        assert answer.status_code == status, answer.text
        freed.off_the_loop()


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("path", ["/adapters", "/screen", "/adapters/kept/rescreen"])
async def test_what_arrived_is_freed_off_the_event_loop_when_its_request_is_cancelled(
    open_gateway: OpenHouse, freed: Freed, path: str, moment: Moment
) -> None:
    async with open_gateway(tau=1e9, keep_originals=True) as running:
        assert (await push(running, "kept", 1)).status_code == 201
        freed.threads.clear()
        for n in range(1, 400):
            sent: Coroutine[Any, Any, Any] = (
                running.http.post(path) if path.endswith("rescreen") else push(running, "mine", n, path)
            )
            if await ends_before(sent, n, moment):
                break
        else:
            raise AssertionError("it never came through")
        async with asyncio.timeout(STUCK_S):
            while running.gateway.context.uploads.working or list((running.data / "quarantine").iterdir()):
                await asyncio.sleep(0.02)
        freed.off_the_loop()


@pytest.mark.parametrize("end", ["another digest was announced", "the name differs in case", "it was refused before"])
async def test_chat_streams_while_a_refused_upload_is_freed(open_gateway: OpenHouse, freed: Freed, end: str) -> None:
    """Freeing takes as long as a whole answer here; on the event loop, the answer would wait for it, and it for ever."""
    async with open_gateway(tau=1e9) as running:
        assert (await push(running, "kept", 1)).status_code == 201
        assert (await push_bad(running, "bad")).status_code == 400
        freeing, streamed, in_time = threading.Event(), threading.Event(), []

        def free_slowly() -> None:
            freeing.set()
            in_time.append(streamed.wait(10))

        freed.before_each = free_slowly
        ask, status = ENDS[end]
        refused = asyncio.ensure_future(ask(running))
        async with asyncio.timeout(STUCK_S):
            while not freeing.is_set():
                await asyncio.sleep(0.01)
            async with running.http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
                chunks = [line async for line in answer.aiter_lines() if line]
            streamed.set()
            assert (await refused).status_code == status
        assert chunks[-1] == "data: [DONE]"
        assert in_time == [True]
