"""Adapters on a hub, read at one commit: what a hub may say, and what is refused of a hub that lies."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.domain.adapter_source import HubSource, Provenance
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import (
    SOURCE_BROKEN,
    SOURCE_CHANGED,
    SOURCE_NOT_FOUND,
    Code,
    GatewayError,
)
from app.domain.outside import Outside
from app.fetch.client import SourceClient
from app.fetch.hub import MAX_INFO, Hub
from tests.fetch.test_client import names
from tests.support.hub import COMMIT, REPOSITORY, RunningHub, running_hub, say

WEIGHTS = bytes(range(256)) * 400
FILES = {CONFIG_FILE: b"{}", WEIGHTS_FILE: WEIGHTS, f"sub/{CONFIG_FILE}": b"{1}", f"sub/{WEIGHTS_FILE}": b"sub"}
INFO = f"/api/models/{REPOSITORY}/revision/main"
FILE = f"/{REPOSITORY}/resolve/{COMMIT}/{WEIGHTS_FILE}"
ANOTHER = "d0d0" + "0" * 36


@pytest.fixture
def hub() -> Iterator[RunningHub]:
    with running_hub(FILES) as made:
        yield made


async def fetched(hub: RunningHub, name: str = f"hf://{REPOSITORY}", *hosts: str) -> tuple[Provenance, list[bytes]]:
    """Provenance and the two files, as they are read."""
    found = []
    async with SourceClient(Outside.of([hub.url, *hosts]), names("127.0.0.1")).connected() as http:
        pinned = await Hub(hub.url, "hub-secret").pin(http, HubSource.parse(name))
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            async with pinned.open(file) as opened:
                found.append(b"".join([chunk async for chunk in opened.chunks]))
        return pinned.provenance, found


async def code_of(hub: RunningHub, name: str = f"hf://{REPOSITORY}") -> Code:
    with pytest.raises(GatewayError) as caught:
        await fetched(hub, name)
    return caught.value.code


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
async def test_the_files_of_the_commit_that_a_revision_names_are_read(hub: RunningHub, revision: str) -> None:
    provenance, files = await fetched(hub, f"hf://{REPOSITORY}@{revision}")
    assert provenance == Provenance(f"hf://{REPOSITORY}@{revision}", {"commit": COMMIT})
    assert files == [b"{}", WEIGHTS]
    assert {headers["Authorization"] for _, headers in hub.seen} == {"Bearer hub-secret"}
    assert {path for path, _ in hub.seen} == {
        f"/api/models/{REPOSITORY}/revision/{revision}",
        f"/{REPOSITORY}/resolve/{COMMIT}/{CONFIG_FILE}",
        FILE,
    }


async def test_a_folder_holds_an_adapter_of_its_own(hub: RunningHub) -> None:
    assert (await fetched(hub, f"hf://{REPOSITORY}/sub"))[1] == [b"{1}", b"sub"]


async def test_a_large_file_comes_from_the_server_that_the_hub_redirects_to(hub: RunningHub) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    with running_hub({}) as cdn:
        cdn.instead["/blob"] = lambda to: say(to, WEIGHTS, {})
        linked = {"X-Linked-Size": str(len(WEIGHTS)), "X-Linked-ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
        hub.instead[FILE] = lambda to: say(to, b"", {"Location": f"{cdn.url}/blob?sig=1", **linked}, 302)
        assert (await fetched(hub, f"hf://{REPOSITORY}", cdn.url))[1] == [b"{}", WEIGHTS]
        assert "Authorization" not in cdn.seen[0][1]


@pytest.mark.parametrize("name", ["hf://someone/else", f"hf://{REPOSITORY}@v9", f"hf://{REPOSITORY}/nowhere"])
async def test_what_is_not_there_is_said(hub: RunningHub, name: str) -> None:
    assert await code_of(hub, name) is SOURCE_NOT_FOUND


@pytest.mark.hostile("U29")
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", SOURCE_BROKEN),
        (b"[" * 100_000, SOURCE_BROKEN),
        (b"[]", SOURCE_BROKEN),
        (b"{}", SOURCE_BROKEN),
        (b'{"sha": 1}', SOURCE_BROKEN),
        (b'{"sha": "main"}', SOURCE_BROKEN),
        (b'{"sha": "../../../etc"}', SOURCE_BROKEN),
        (json.dumps({"sha": COMMIT + "\n"}).encode(), SOURCE_BROKEN),
        (json.dumps({"sha": COMMIT, "id": "someone/renamed"}).encode(), SOURCE_NOT_FOUND),
        (json.dumps({"sha": COMMIT, "id": ["x"]}).encode(), SOURCE_NOT_FOUND),
        (b" " * (MAX_INFO + 1), SOURCE_BROKEN),
    ],
    ids=["nothing", "deep", "list", "empty", "number", "branch", "path", "line", "renamed", "odd_id", "huge"],
)
async def test_a_hub_that_names_no_commit_is_not_read(hub: RunningHub, said: bytes, code: Code) -> None:
    hub.instead[INFO] = lambda to: say(to, said, {})
    assert await code_of(hub) is code
    assert len(hub.seen) == 1


@pytest.mark.hostile("U29")
async def test_a_commit_that_was_asked_for_is_not_another(hub: RunningHub) -> None:
    info = f"/api/models/{REPOSITORY}/revision/{ANOTHER}"
    hub.instead[info] = lambda to: say(to, json.dumps({"sha": COMMIT}).encode(), {})
    assert await code_of(hub, f"hf://{REPOSITORY}@{ANOTHER}") is SOURCE_BROKEN


@pytest.mark.hostile("U32")
async def test_a_file_of_another_commit_is_refused(hub: RunningHub) -> None:
    hub.instead[FILE] = lambda to: say(to, WEIGHTS, {"X-Repo-Commit": ANOTHER})
    assert await code_of(hub) is SOURCE_CHANGED


@pytest.mark.hostile("U32")
async def test_a_branch_that_moves_while_it_is_read_is_read_at_one_commit(hub: RunningHub) -> None:
    def moved(to: Any) -> None:
        say(to, b"{}", {"X-Repo-Commit": COMMIT})
        hub.instead[INFO] = lambda again: say(again, json.dumps({"sha": ANOTHER}).encode(), {})
        hub.instead[FILE.replace(COMMIT, "main")] = lambda again: say(again, b"moved", {})

    hub.instead[FILE.replace(WEIGHTS_FILE, CONFIG_FILE)] = moved
    assert (await fetched(hub))[1] == [b"{}", WEIGHTS]


@pytest.mark.hostile("U29")
@pytest.mark.parametrize("announced", [0, 1, len(WEIGHTS) - 1, len(WEIGHTS) + 1, 10**17])
@pytest.mark.parametrize("name", ["X-Linked-Size", "Content-Length"])
async def test_a_size_that_is_another_than_announced_is_refused(hub: RunningHub, name: str, announced: int) -> None:
    headers = {name: str(announced)} if name == "X-Linked-Size" else {name: str(announced), "X-Linked-Size": "102400"}
    hub.instead[FILE] = lambda to: say(to, WEIGHTS, headers)
    assert await code_of(hub) is SOURCE_BROKEN


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Hub("https://hub.example.com", "secret"))
    assert replace(Hub("https://hub.example.com", "secret"), token=None).secret == {}
