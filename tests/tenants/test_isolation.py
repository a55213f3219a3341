"""Tenants through the whole gateway: each has names, versions and keys of its own, and learns nothing of the others."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from app.api.access.rules import ROUTES
from app.domain.api_keys import Role, new_key
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form

KEYS: Final = {
    "acme": new_key("acme-app", [Role.UPLOAD, Role.CHAT], tenant="acme"),
    "acme-admin": new_key("acme-admin", [Role.ADMIN], tenant="acme"),
    "globex": new_key("globex-app", [Role.UPLOAD, Role.CHAT], tenant="globex"),
    "plain": new_key("plain", [Role.UPLOAD, Role.CHAT]),
    "operator": (KEY, None),
}
NAME, NOBODYS = "theirs", "nobody"
"""Name of an adapter that globex has, and one of the same length that nobody has."""


@pytest_asyncio.fixture
async def tenants(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway in which globex has one adapter and acme none."""
    file = tmp_path / "keys"
    file.write_text("".join(f"{stored.line}\n" for _, stored in KEYS.values() if stored))
    async with open_gateway(api_keys_file=file) as running:
        assert (await push(running, "globex", NAME, 7)).status_code == 201
        yield running


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {KEYS[who][0]}"}, **sent)


async def push(running: Running, who: str, name: str, seed: int = 0, **query: str) -> httpx.Response:
    return await ask(running, who, "POST", "/adapters", files=form(name, seed), params=query)


async def chat(running: Running, who: str, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return await ask(running, who, "POST", "/v1/chat/completions", json=body)


async def models(running: Running, who: str, **query: str) -> set[str]:
    answer = await ask(running, who, "GET", "/v1/models", params=query)
    return {card["id"] for card in answer.json()["data"]}


async def test_the_same_name_is_another_adapter_for_each_tenant(tenants: Running) -> None:
    pushed = await push(tenants, "acme", "sql", 1)
    assert (pushed.status_code, pushed.json()["name"], pushed.json()["model"]) == (201, "sql", "sql@1")
    assert pushed.headers["location"] == "/adapters/sql/versions/1"
    other = await push(tenants, "globex", "sql", 2)
    plain = await push(tenants, "plain", "sql", 3)
    assert [one.json()["version"] for one in (other, plain)] == [1, 1]
    digests = [one.json()["digest"] for one in (pushed, other, plain)]
    assert len({*digests}) == 3
    for who, digest in zip(("acme", "globex", "plain"), digests, strict=True):
        answer = await chat(tenants, who, "sql")
        assert answer.json()["model"] == "sql"
        assert answer.headers["x-adapter-digest"] == digest
        assert (await ask(tenants, who, "GET", "/adapters/sql/versions/1")).json()["digest"] == digest


async def test_equal_bytes_share_storage_and_no_history(tenants: Running) -> None:
    theirs = (await ask(tenants, "globex", "GET", f"/adapters/{NAME}")).json()["versions"][0]
    mine = await push(tenants, "acme", NAME, 7)
    assert mine.status_code == 201, "made, not known already"
    assert (mine.json()["digest"], mine.json()["version"]) == (theirs["digest"], 1)
    assert (await push(tenants, "acme", NAME, 7)).status_code == 200
    assert len([*(tenants.data / "artefacts").glob(f"{theirs['digest'].removeprefix('sha256:')}*")]) == 1
    assert (await ask(tenants, "acme-admin", "DELETE", f"/adapters/{NAME}")).status_code == 204
    assert (await chat(tenants, "globex", NAME)).status_code == 200, "its artefact is still there"


async def test_lists_hold_a_tenants_own(tenants: Running) -> None:
    for number in range(3):
        assert (await push(tenants, "acme", f"a{number}", number)).status_code == 201
    assert (await push(tenants, "plain", "b", 9)).status_code == 201
    assert await models(tenants, "acme") == {SERVED, *(f"a{n}{v}" for n in range(3) for v in ("", "@1"))}
    assert await models(tenants, "globex") == {SERVED, NAME, f"{NAME}@1"}
    assert await models(tenants, "plain") == {SERVED, "b", "b@1"}
    assert await models(tenants, "operator") >= {SERVED, "b", "acme/a1@1", f"globex/{NAME}"}
    assert await models(tenants, "operator", tenant="acme") == await models(tenants, "acme")
    page: dict[str, Any] = {"next": ""}
    seen: list[str] = []
    while page["next"] is not None:
        query = {"limit": "2", "after": page["next"]}
        page = (await ask(tenants, "acme", "GET", "/adapters", params=query)).json()
        seen += [one["name"] for one in page["adapters"]]
    assert seen == ["a0", "a1", "a2"]
    listed = (await ask(tenants, "plain", "GET", "/adapters")).json()["adapters"]
    assert [one["name"] for one in listed] == ["b"]


async def test_the_operator_acts_in_any_tenant(tenants: Running) -> None:
    pushed = await push(tenants, "operator", "sql", 1, tenant="acme")
    assert pushed.headers["location"] == "/adapters/sql/versions/1?tenant=acme"
    assert (await push(tenants, "acme", "sql", 2)).json()["version"] == 2, "it belongs to no key of the operator's"
    answer = await chat(tenants, "operator", "acme/sql@1")
    assert (answer.status_code, answer.json()["model"]) == (200, "acme/sql@1")
    assert (await ask(tenants, "operator", "GET", pushed.headers["location"])).json()["name"] == "sql"
    assert (await ask(tenants, "operator", "GET", "/adapters/sql")).status_code == 404
    assert (await ask(tenants, "operator", "DELETE", "/adapters/sql?tenant=acme")).status_code == 204
    assert (await chat(tenants, "acme", "sql")).status_code == 404
    wrong = await ask(tenants, "operator", "GET", "/adapters?tenant=No/Body")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tenant")


async def test_an_administrator_of_a_tenant_is_no_operator(tenants: Running) -> None:
    assert (await push(tenants, "acme", "sql")).status_code == 201
    report = (await ask(tenants, "acme-admin", "GET", "/adapters/sql/versions/1")).json()["report"]
    exact = (await ask(tenants, "operator", "GET", "/adapters/sql/versions/1?tenant=acme")).json()["report"]
    assert report != exact, "exact scores would tell an attacker how to move"
    assert (await push(tenants, "acme", "sql", 1)).status_code == 201
    assert (await ask(tenants, "acme-admin", "POST", "/adapters/sql/rollback")).json()["version"] == 1
    assert (await ask(tenants, "acme-admin", "POST", f"/adapters/{NAME}/rollback")).status_code == 404
    assert (await push(tenants, "acme-admin", NAME, 1)).json()["version"] == 1, "its own, not globex's"


async def test_no_key_of_a_tenant_sees_what_concerns_all(tenants: Running) -> None:
    for method, path in (at for at, rule in ROUTES.items() if rule.operators):
        answer = await ask(tenants, "acme-admin", method, path.replace("{", "").replace("}", ""))
        assert answer.status_code == 403, path


NAMED: Final = [at for at, rule in ROUTES.items() if "{name}" in at[1] and not rule.operators]


@pytest.mark.hostile("T01")
async def test_anothers_name_is_answered_as_nobodys(tenants: Running) -> None:
    """In the path, the query and the body of every route with a name in it."""

    async def answers(at: tuple[str, str], name: str, **query: str) -> tuple[int, dict[str, str], str]:
        path = at[1].replace("{name}", name).replace("{number}", "1")
        body = b'{"1": 100}' if path.endswith("/traffic") else b'{"owner": "me"}'
        sent = {"content": body} if at[0] == "PUT" else {}
        answer = await ask(tenants, "acme-admin", at[0], path, params=query, **sent)
        headers = {key: value for key, value in answer.headers.items() if key != "x-request-id"}
        return answer.status_code, headers, answer.text.replace(name, "<name>")

    for at in NAMED:
        assert await answers(at, NAME) == await answers(at, NOBODYS)
        assert (await answers(at, NAME))[0] == 404, at
        for query in ({"tenant": "globex"}, {"tenant": "nobody"}, {"tenant": "default"}):
            status, _, text = await answers(at, NAME, **query)
            assert status == 403, at
            assert text == (await answers(at, NOBODYS, tenant="nobody"))[2]


BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hello"}]},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [1]},
}


def test_every_route_of_inference_is_tried() -> None:
    ours = {path for method, path in ROUTES if method == "POST" and (path.startswith("/v1/") or "token" in path)}
    assert ours == BODIES.keys()


@pytest.mark.hostile("T01")
@pytest.mark.parametrize("who", ["acme", "acme-admin", "plain"])
async def test_anothers_model_does_not_exist(tenants: Running, who: str) -> None:
    async def answer(path: str, model: str) -> tuple[int, str]:
        found = await ask(tenants, who, "POST", path, json={"model": model, **BODIES[path]})
        return found.status_code, found.text.replace(NAME, "<name>").replace(NOBODYS, "<name>")

    forms = ("{}", "{}@1", "globex/{}", "globex/{}@1", "globex~{}", "acme/{}", "GLOBEX/{}", "/{}", "default/{}")
    for path, form_of in itertools.product(BODIES, forms):
        status, text = await answer(path, form_of.format(NAME))
        assert status == 404, path
        assert (status, text) == await answer(path, form_of.format(NOBODYS))


async def test_names_of_tenants_stand_in_no_metric_that_a_tenant_may_read(tenants: Running) -> None:
    assert (await ask(tenants, "acme-admin", "GET", "/metrics")).status_code == 403
    metrics = (await ask(tenants, "operator", "GET", "/metrics")).text
    assert f'"globex/{NAME}"' in metrics


async def test_the_console_shows_a_tenants_own(tenants: Running) -> None:
    assert (await push(tenants, "acme", "sql")).status_code == 201
    for page in ("/", "/console/trends", "/console/chat", f"/console/adapters/{NAME}"):
        mine, theirs = [(await ask(tenants, who, "GET", page)).text for who in ("acme-admin", "globex")]
        assert "globex" not in mine
        assert "Requests to it alone" not in mine, "others' use of the served model is not its business"
        if page != "/console/trends":
            assert f">{NAME}" not in mine, page
            assert NAME in theirs, page
