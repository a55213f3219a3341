"""Which key may do what: the table against every route there is, and against real requests."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import Mount

from app.api.access.rules import ADMIN_ONLY, ROUTES
from app.domain.api_keys import Role, new_key
from app.server.settings import Settings
from tests.support.gateway import KEY, OpenHouse, Running, form

KEYS = {role: new_key(f"key-for-{role}", [role]) for role in Role}
CONCRETE = {"{name}": "x", "{number}": "1"}
GUARDED = [at for at, rule in ROUTES.items() if rule.roles is not None]


@pytest_asyncio.fixture
async def with_roles(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Running]:
    file = tmp_path / "keys"
    file.write_text("# one key a role\n" + "\n".join(stored.line for _, stored in KEYS.values()))
    async with open_gateway(api_keys_file=file) as running:
        yield running


def path_of(route: str) -> str:
    for hole, filling in CONCRETE.items():
        route = route.replace(hole, filling)
    return route


def made(**given: Any) -> Settings:
    return Settings(**{"model": "m", "reference": "r", **given})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def every_route(running: Running) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for route in running.app.routes:
        assert not isinstance(route, Mount), f"{route.path}: nothing guards what is mounted"
        found |= {(method, route.path) for method in route.methods if method != "HEAD"}  # type: ignore[attr-defined]
    return found


async def test_every_route_stands_in_the_table_and_the_table_names_no_other(running: Running) -> None:
    assert every_route(running) == set(ROUTES)


async def test_no_route_lets_the_framework_read_a_body_before_the_guard(running: Running) -> None:
    for route in running.app.routes:
        if isinstance(route, APIRoute):
            assert route.body_field is None, route.path


async def test_an_open_door_has_the_same_routes(open_gateway: OpenHouse) -> None:
    async with open_gateway(api_keys="", open=True) as running:
        assert every_route(running) == set(ROUTES)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("at", GUARDED, ids=lambda at: f"{at[0]} {at[1]}")
async def test_a_key_opens_the_doors_of_its_role_and_no_other(
    with_roles: Running, at: tuple[str, str], role: Role
) -> None:
    key, stored = KEYS[role]
    roles = ROUTES[at].roles
    assert roles is not None
    answer = await with_roles.http.request(at[0], path_of(at[1]), headers=bearer(key))
    if stored.may(roles):
        assert answer.status_code not in (401, 403)
        return
    assert answer.status_code == 403
    assert key not in answer.text
    if at[1].startswith("/console") or at[1] == "/":  # pages are for people
        assert "lacks the role" in answer.text
        return
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("forbidden", "permission_error")
    assert answer.headers["connection"] == "close"  # a body may follow, which nobody will read


async def test_keys_of_the_environment_and_of_the_file_work_side_by_side(with_roles: Running) -> None:
    assert (await with_roles.http.delete("/adapters/x", headers=bearer(KEY))).status_code == 404
    assert (await with_roles.http.get("/metrics", headers=bearer(KEYS[Role.METRICS][0]))).status_code == 200


async def test_an_uploader_cannot_take_down_what_others_use(with_roles: Running) -> None:
    key = bearer(KEYS[Role.UPLOAD][0])
    assert (await with_roles.http.post("/adapters", files=form("mine"), headers=key)).status_code == 201
    assert (await with_roles.http.delete("/adapters/mine", headers=key)).status_code == 403
    assert (await with_roles.http.get("/adapters/mine", headers=key)).status_code == 200


def test_what_is_forgotten_is_for_admins() -> None:
    assert ADMIN_ONLY.roles == frozenset()


@pytest.mark.ruling("G12")
async def test_limits_hold_per_key_and_say_how_long(open_gateway: OpenHouse, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys = [new_key(name, [Role.ADMIN]) for name in ("one", "two")]
    file.write_text("\n".join(stored.line for _, stored in keys))
    async with open_gateway(api_keys_file=file, uploads_per_minute=2, chats_per_minute=1) as running:

        async def statuses(path: str, key: str, times: int, **sent: Any) -> list[int]:
            return [(await running.http.post(path, headers=bearer(key), **sent)).status_code for _ in range(times)]

        assert await statuses("/adapters", keys[0][0], 3) == [400, 400, 429]
        assert await statuses("/adapters", keys[1][0], 3) == [400, 400, 429]
        assert await statuses("/v1/completions", keys[0][0], 2) == [400, 429]
        assert await statuses("/screen", keys[0][0], 5) == [400] * 5
        limited = await running.http.post("/adapters", headers=bearer(keys[0][0]))
        assert 1 <= int(limited.headers["retry-after"]) <= 30
        assert limited.json()["error"]["type"] == "rate_limit_error"
        assert limited.headers["connection"] == "close"
        assert (await running.http.get("/adapters", headers=bearer(keys[0][0]))).status_code == 200


async def test_a_key_that_keeps_uploads_open_leaves_a_place_for_others(open_gateway: OpenHouse, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    (greedy, one), (other, two) = (new_key(name, [Role.UPLOAD]) for name in ("greedy", "other"))
    file.write_text(f"{one.line}\n{two.line}\n")
    arrived = asyncio.Semaphore(0)

    async def endless() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        arrived.release()
        await asyncio.Event().wait()

    async with open_gateway(api_keys_file=file, max_uploads=4) as running:
        headers = bearer(greedy) | {"content-type": "multipart/form-data; boundary=b"}
        held = [
            asyncio.ensure_future(running.http.post("/adapters", content=endless(), headers=headers)) for _ in range(2)
        ]
        async with asyncio.timeout(10):
            for _ in held:
                await arrived.acquire()
        refused = await running.http.post("/adapters", files=form("mine"), headers=bearer(greedy))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
        assert "kept for other keys" in refused.json()["error"]["message"]
        assert (await running.http.post("/adapters", files=form("theirs"), headers=bearer(other))).status_code == 201
        for one_held in held:
            one_held.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        assert (await running.http.post("/adapters", files=form("mine"), headers=bearer(greedy))).status_code == 201


@pytest.mark.parametrize("content", ["", "# nothing\n", "ci upload plain-key\n"])
def test_a_file_without_keys_refuses_to_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ValidationError, match=r"holds no key|line 1"):
        made(api_keys_file=file)
    with pytest.raises(ValidationError, match="No such file"):
        made(api_keys_file=tmp_path / "none")


def test_short_keys_refuse_to_start_and_are_not_repeated() -> None:
    with pytest.raises(ValidationError, match="16 characters") as refused:
        made(api_keys="swordfish")
    assert "swordfish" not in str(refused.value)


def test_the_command_prints_a_key_once_and_the_line_that_admits_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "keys", "new", "--name", "ci", "--role", "upload", "--role", "chat"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    key = printed.stderr.split()[-1]
    assert key not in printed.stdout
    (tmp_path / "keys").write_text(printed.stdout)
    (stored,) = made(api_keys_file=tmp_path / "keys").keys
    assert (stored.name, stored.roles) == ("ci", frozenset({Role.UPLOAD, Role.CHAT}))
    wrong = subprocess.run([*command[:-1], "root"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
