"""The console's pages without a browser: who sees them, what they hold, and what they do with bad input."""

import time

import httpx
import pytest

from app.console.cookie_auth import COOKIE
from app.domain.digest import digest_of
from app.domain.lora import Received
from app.domain.names import AdapterName
from app.domain.version_state import State
from tests.store.making import begun
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.rolling_out import NAME, chat, push, put, user_of

OURS = {"X-Console": "1"}


def session_cookie(answer: httpx.Response) -> str:
    """The session's cookie in an answer, whole."""
    (found,) = (one for one in answer.headers.get_list("set-cookie") if one.startswith(f"{COOKIE}="))
    return found


async def signed_in(running: Running) -> dict[str, str]:
    """Headers of a browser that signed in, as it sends them from one of the console's pages."""
    visitor = anonymous(running)
    answer = await visitor.post("/console/session", data={"key": KEY}, headers=OURS)
    assert answer.status_code == 204, answer.text
    return {"cookie": session_cookie(answer).partition(";")[0]}


def anonymous(running: Running) -> httpx.AsyncClient:
    """A client without a key."""
    transport = httpx.ASGITransport(running.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.mark.parametrize("path", ["/", "/console/adapters/a", "/console/upload", "/console/chat?a=b", "/console/x"])
async def test_who_has_no_key_is_asked_for_one_and_brought_back(running: Running, path: str) -> None:
    answer = await anonymous(running).get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/console/sign-in?next=/")
    page = await anonymous(running).get(answer.headers["location"])
    assert page.status_code == 200
    assert f'data-next="{path}"' in page.text


async def test_what_everybody_may_see_says_nothing_of_adapters(running: Running) -> None:
    await running.http.post("/adapters", files=form("hidden-one"))
    for path in ("/console/sign-in", "/console/static/console.css", "/console/static/common.js"):
        answer = await anonymous(running).get(path)
        assert answer.status_code == 200
        assert "hidden-one" not in answer.text


@pytest.mark.parametrize(
    "there", ["//evil.example/", "/\\evil.example", "https://evil.example/", "javascript:alert(1)"]
)
async def test_signing_in_leads_to_no_other_site(running: Running, there: str) -> None:
    page = await anonymous(running).get("/console/sign-in", params={"next": there})
    assert 'data-next="/"' in page.text


async def test_the_cookie_counts_only_beside_the_consoles_own_header(running: Running) -> None:
    cookie, visitor = await signed_in(running), anonymous(running)
    assert (await visitor.get("/", headers=cookie)).status_code == 200
    for method, path in (("GET", "/adapters"), ("DELETE", "/adapters/a"), ("POST", "/adapters/a/rollback")):
        assert (await visitor.request(method, path, headers=cookie)).status_code == 401
    assert (await visitor.get("/adapters", headers={**cookie, **OURS})).status_code == 200
    assert (await visitor.delete("/adapters/a", headers={**cookie, **OURS})).status_code == 404
    posted = await visitor.post("/adapters", files=form("a"), headers=cookie)
    assert (posted.status_code, posted.json()["error"]["code"]) == (401, "unauthorized")
    assert (await visitor.post("/adapters", files=form("a"), headers={**cookie, **OURS})).status_code == 201


async def test_signing_in_needs_the_header_and_a_right_key(running: Running) -> None:
    visitor = anonymous(running)
    assert (await visitor.post("/console/session", data={"key": KEY})).status_code == 400
    assert (await visitor.delete("/console/session")).status_code == 400
    wrong = await visitor.post("/console/session", data={"key": "wrong"}, headers=OURS)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "unauthorized")
    assert "set-cookie" not in wrong.headers
    large = await visitor.post("/console/session", data={"key": "x" * 10_000}, headers=OURS)
    assert large.status_code == 413


async def test_the_cookie_is_for_this_site_this_browser_and_over_tls_only_tls(running: Running) -> None:
    visitor = anonymous(running)
    plain = await visitor.post("/console/session", data={"key": KEY}, headers=OURS)
    tls = await visitor.post("https://gateway/console/session", data={"key": KEY}, headers=OURS)
    for answer in (plain, tls):
        said = session_cookie(answer).lower()
        assert "httponly" in said
        assert "samesite=strict" in said
        assert "max-age" not in said
        assert KEY not in said
    assert "secure" not in session_cookie(plain).lower()
    assert "secure" in session_cookie(tls).lower()


@pytest.mark.parametrize("value", ["", "%%%", "!!", "AAAA", "Cg==", "a" * 5000, '"', "\\x00"])
async def test_a_cookie_that_is_none_of_ours_is_nobody(running: Running, value: str) -> None:
    answer = await anonymous(running).get("/", headers={"cookie": f"gateway_console={value}; other=1"})
    assert answer.status_code == 303


@pytest.mark.parametrize(
    "key", [{"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}], ids=lambda key: next(iter(key))
)
async def test_a_key_in_a_header_goes_before_the_cookie(running: Running, key: dict[str, str]) -> None:
    headers = {**await signed_in(running), **OURS, **key}
    assert (await anonymous(running).get("/adapters", headers=headers)).status_code == 401


async def test_pages_run_only_our_own_scripts_and_stay_in_no_cache(running: Running) -> None:
    for path in ("/", "/console/upload", "/console/adapters/nobody", "/console/sign-in"):
        answer = await running.http.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert "<script>" not in answer.text
        assert 'style="' not in answer.text
        assert "://" not in answer.text.replace("http://www.w3.org", "")


REFUSED_AT_THE_DOOR = {
    "/console/adapters/%f0%9f%92%a9",
    "/console/adapters/%00",
    "/console/adapters/%1b%5b2J",
    "/console/adapters/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/adapters/nobody", 404),
        ("/console/adapters/%00", 404),
        ("/console/adapters/%1b%5b2J", 404),
        ("/console/adapters/%f0%9f%92%a9", 404),
        ("/console/adapters/%3Cscript%3Ealert(1)%3C%2Fscript%3E", 404),
        ("/console/adapters/" + "x" * 3000, 404),
        ("/console/adapters/there?version=9", 404),
        ("/console/adapters/there?version=99999999999999999999", 400),
        ("/console/adapters/there?version=x", 400),
        ("/console/adapters/there?before=1", 200),
        ("/console/adapters/there?version=1", 200),
        ("/console/adapters/there/compare", 200),
        ("/console/adapters/there/compare?a=1&b=1", 200),
        ("/console/adapters/there/compare?a=9", 404),
        ("/console/adapters/there/compare?a=x", 400),
        ("/console/adapters/nobody/compare", 404),
        ("/console/nothing/here", 404),
        ("/?page=0", 400),
        ("/?page=999999", 200),
        ("/?q=%25_%5C", 200),
        ("/?q=%00", 200),
        ("/?q=%22%3E%3Cscript%3E", 200),
        ("/console/chat?a=%3Cscript%3E&b=gone@7", 200),
        ("/console/upload?name=%22%3E%3Cscript%3E", 200),
        ("/console", 303),
    ],
)
async def test_odd_addresses_get_a_page_and_never_break_one(running: Running, path: str, status: int) -> None:
    await running.http.post("/adapters", files=form("there"))
    answer = await running.http.get(path)
    assert answer.status_code == status, answer.text
    assert "<script>" not in answer.text
    if path in REFUSED_AT_THE_DOOR:  # no address a browser makes: told as the API tells it, before any page is asked
        assert answer.json()["error"]["code"] == "not_found"
    elif status != 303:
        assert answer.headers["content-type"].startswith("text/html")
        assert "<h1>" in answer.text


async def test_a_thousand_adapters_are_paged_and_filtered_quickly(running: Running) -> None:
    catalogue = running.gateway.context.uploads.components.catalogue
    received = Received(digest_of(b"c"), digest_of(b"w"), 1, 1)
    for index in range(1000):
        begun(catalogue, AdapterName(f"many.{index:04d}"), received, "p")
    seconds = []
    for _ in range(3):  # the quickest: other work on the machine is not ours
        start = time.perf_counter()
        first = await running.http.get("/")
        seconds.append(time.perf_counter() - start)
    assert first.text.count('scope="row"') == 50
    assert "1,000 adapters" in first.text
    assert "Page 1 of 20" in first.text
    assert min(seconds) < 1.0
    last = await running.http.get("/", params={"page": 20})
    assert "many.0999" in last.text
    found = await running.http.get("/", params={"q": "MANY.012"})
    assert found.text.count('scope="row"') == 10
    assert "No adapter" in (await running.http.get("/", params={"q": "%"})).text
    assert (await running.http.get("/console/chat")).status_code == 200


async def test_an_adapters_page_shows_each_state_it_can_be_in(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        first = (await running.http.post("/adapters", files=form("one"))).json()
        page = (await running.http.get("/console/adapters/one")).text
        assert "served" in page
        assert "one@1" in page
        for module in first["report"]["verdict"]["modules"]:
            assert module["name"] in page
        catalogue = running.gateway.context.uploads.components.catalogue
        received = Received(digest_of(b"c"), digest_of(b"w"), 1, 1)
        row = begun(catalogue, AdapterName("one"), received, "p")
        assert row.state is State.RECEIVED
        page = (await running.http.get("/console/adapters/one?version=2")).text
        assert "being screened" in page
        assert 'data-watch="one"' in page
    worst = max(m["scores"]["input"] for m in first["report"]["verdict"]["modules"])
    async with open_gateway(tau=worst - 0.001) as running:
        page = (await running.http.get("/console/adapters/one?version=1")).text
        assert "Withheld" in page
        assert "made under other rules" in page
        failed = (await running.http.get("/console/adapters/one?version=2")).text
        assert "screening_failed" in failed
        assert "Try again; the log has the details." in failed


async def test_many_versions_are_shown_a_page_at_a_time_each_with_what_changed(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=0.5, max_pruned_share=1.0) as running:
        for seed in range(23):
            await running.http.post("/adapters", files=form("long", seed=seed))
        page = (await running.http.get("/console/adapters/long")).text
        assert page.count(" corrected</td>") + page.count("same modules</td>") == 20
        assert "?before=4#history" in page
        older = (await running.http.get("/console/adapters/long?before=4")).text
        assert "?version=1" in older
        assert "What changed since v22" in older


async def test_the_list_counts_what_was_answered(running: Running) -> None:
    await running.http.post("/adapters", files=form("one"))
    for model in ("one", "one@1", SERVED):
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200
    page = (await running.http.get("/")).text
    assert 'data-label="Requests" class="n">2<' in page
    assert 'data-label="Tokens" class="n">16<' in page
    assert "1 (8 tokens)" in page


async def test_projected_modules_are_marked_apart_from_those_cut_out(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=0.5, max_pruned_share=1.0, action="project", max_removed_share=1.0) as running:
        made = (await running.http.post("/adapters", files=form("one"))).json()
        projected = made["report"]["verdict"]["modules_projected"]
        assert projected
        page = (await running.http.get("/console/adapters/one")).text
        assert page.count('aria-hidden="true">⊥</span>') == projected
        assert f"{projected} projected, 0 cut of 8" in page
        assert "projected above" in (await running.http.get("/")).text


async def test_an_adapters_page_shows_its_roll_out(running: Running) -> None:
    for seed in (1, 2):
        await push(running, seed)
    as_visitor = await signed_in(running)
    path = f"/console/adapters/{NAME}"
    assert "Roll-out" not in (await anonymous(running).get(path, headers=as_visitor)).text
    assert (await put(running, v1=95, v2=5, shadow=2)).status_code == 200
    for _ in range(3):
        await chat(running, user_of(running, 1))
    page = (await anonymous(running).get(path, headers=as_visitor)).text
    section = page.partition('id="roll-out"')[2].partition("</section>")[0]
    for cell in ("v1", "95 %", "v2", "5 %", "stable", "shadow", "Promote", "Abort"):
        assert cell in section
    assert '<td>95%</td><tdclass="n">3</td><tdclass="n">0</td>' in "".join(section.split())
