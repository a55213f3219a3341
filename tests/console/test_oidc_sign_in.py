"""Signing in at an issuer: the way there and back, and every answer that somebody else began."""

import re
import socket
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import pytest_asyncio
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ViewportSize, expect

from app.console.cookie_auth import COOKIE, MAX_TOKEN_BYTES, TENANT_COOKIE
from app.console.oidc_sign_in import ATTEMPT_COOKIE, BEGIN, CALLBACK
from app.domain.errors import ISSUER_AWAY, NOT_FOUND, SIGN_IN_FAILED
from tests.console.conftest import Serve, Visitor
from tests.support.gateway import KEY, OpenHouse, Running
from tests.support.issuer import CLIENT, SimulatedIssuer

PHONE: Final[ViewportSize] = {"width": 360, "height": 740}
HERE: Final = "http://127.0.0.1"
"""The gateway's origin for its visitors."""


def settings(issuer: str, origin: str = HERE, **more: Any) -> dict[str, Any]:
    return {"oidc_issuers": issuer, "oidc_client_id": CLIENT, "oidc_redirect_url": f"{origin}{CALLBACK}", **more}


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> AsyncIterator[Running]:
    async with open_gateway(**settings(issuer.url)) as made:
        yield made


def visitor_of(running: Running, scheme: str = "http") -> httpx.AsyncClient:
    """A browser without a key, that keeps cookies."""
    transport = httpx.ASGITransport(running.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"{scheme}://127.0.0.1")


async def at_the_issuer(browser: httpx.AsyncClient, next_path: str = "/") -> str:
    """Begin, and return the address with which the issuer sends the browser back."""
    begun = await browser.get(BEGIN, params={"next": next_path})
    assert begun.status_code == 303, begun.text
    async with httpx.AsyncClient() as elsewhere:
        back = await elsewhere.get(begun.headers["location"])
    return str(back.headers["location"])


def cookie(answer: httpx.Response, name: str) -> str:
    (found,) = (one for one in answer.headers.get_list("set-cookie") if one.startswith(f"{name}="))
    return found


def failed(answer: httpx.Response, status: int = 400, code: str = SIGN_IN_FAILED.name) -> bool:
    """Return True for a page that tells of a refusal and sets no session."""
    session = any(one.startswith(f"{COOKIE}=") for one in answer.headers.get_list("set-cookie"))
    return answer.status_code == status and not session and code in answer.text and "<h1>" in answer.text


async def test_a_person_signs_in_and_works(running: Running, issuer: SimulatedIssuer) -> None:
    async with visitor_of(running) as browser:
        page = await browser.get("/console/sign-in", params={"next": "/console/upload?name=a&b=c"})
        assert "Sign in with single sign-on" in page.text
        (link,) = re.findall(rf'href="({BEGIN}[^"]*)"', page.text)
        begun = await browser.get(link.replace("&amp;", "&"))
        async with httpx.AsyncClient() as elsewhere:
            back = await elsewhere.get(begun.headers["location"])
        done = await browser.get(back.headers["location"])
        assert done.status_code == 200
        assert 'content="0; url=/console/upload?name=a&amp;b=c"' in done.text
        assert ATTEMPT_COOKIE not in browser.cookies
        assert (await browser.get("/console/upload")).status_code == 200
        assert (await browser.get("/console/keys")).status_code == 403
        listed = await browser.get("/adapters", headers={"X-Console": "1"})
        assert listed.status_code == 200
        assert (await browser.get("/adapters")).status_code == 401, "the API takes no cookies"
        assert (await browser.post("/adapters/x/rollback?to=1")).status_code == 401
        out = await browser.delete("/console/session", headers={"X-Console": "1"})
        assert out.status_code == 204
        assert (await browser.get("/console/upload")).status_code == 303


async def test_cookies_are_bound_to_this_site(running: Running) -> None:
    async with visitor_of(running, "https") as browser:
        begun = await browser.get(BEGIN)
        attempt = cookie(begun, ATTEMPT_COOKIE).lower()
        for part in ("httponly", "samesite=lax", "secure", f"path={BEGIN}", "max-age=600"):
            assert part in attempt
        async with httpx.AsyncClient() as elsewhere:
            back = await elsewhere.get(begun.headers["location"])
        done = await browser.get(back.headers["location"].replace("http:", "https:"))
        session = cookie(done, COOKIE).lower()
        for part in ("httponly", "samesite=strict", "secure", "path=/"):
            assert part in session
        assert "max-age" not in session
        assert cookie(done, TENANT_COOKIE).startswith(f'{TENANT_COOKIE}=""')
        for answer in (begun, done):
            assert answer.headers["cache-control"] == "no-store"


@pytest.mark.hostile("T05")
async def test_an_answer_without_an_attempt_of_this_browser(running: Running) -> None:
    """A link with somebody else's code: it must not sign its victim in as them."""
    async with visitor_of(running) as theirs, visitor_of(running) as mine:
        stolen = await at_the_issuer(theirs)
        assert failed(await mine.get(stolen))
        await at_the_issuer(mine)
        assert failed(await mine.get(stolen)), "another attempt's state"
        assert (await theirs.get(stolen)).status_code == 200


@pytest.mark.parametrize(
    "change", ["state=", "state=x", "state=%00%ff", "code=", "code=x", "iss=https://other.example"]
)
@pytest.mark.hostile("T05")
async def test_an_answer_that_was_changed(running: Running, change: str) -> None:
    async with visitor_of(running) as browser:
        back = await at_the_issuer(browser)
        name = change.partition("=")[0]
        assert failed(await browser.get(re.sub(rf"{name}=[^&]*", change, back)))


@pytest.mark.parametrize(
    "value", ["", "a", "a.b.c", "a.b.c.!", "...Lw==", "a.b.c._w==", "x" * 3000, "a.b.c.Lw==.d"], ids=lambda v: v[:20]
)
@pytest.mark.hostile("T05")
async def test_a_cookie_that_is_no_attempt(running: Running, value: str) -> None:
    async with visitor_of(running) as browser:
        answer = await browser.get(f"{CALLBACK}?state=&code=x", headers={"cookie": f"{ATTEMPT_COOKIE}={value}"})
        assert failed(answer)


async def test_a_person_who_is_not_let_in_there_is_told(running: Running) -> None:
    async with visitor_of(running) as browser:
        state = parse_qs(urlsplit(await at_the_issuer(browser)).query)["state"][0]
        refused = {"state": state, "error": "access_denied\n<script>", "error_description": "x" * 5000}
        answer = await browser.get(CALLBACK, params=refused)
        assert failed(answer)
        assert "access_denied" in answer.text
        assert "<script>\n" not in answer.text


@pytest.mark.parametrize("there", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:x", "/a\n"])
@pytest.mark.hostile("T05")
async def test_it_leads_to_no_other_site(running: Running, there: str) -> None:
    async with visitor_of(running) as browser:
        done = await browser.get(await at_the_issuer(browser, there))
        assert 'content="0; url=/"' in done.text
        assert "evil" not in done.text


LOOPS: Final = (
    BEGIN,
    f"{BEGIN}?next=/",
    f"{CALLBACK}?state=x&code=y",
    "/console/sign-in",
    "/console/sign-in/",
    "/console/sign-in#x",
    "/console/%73ign-in/oidc",
    "/console/x/../sign-in/oidc",
    "/console/x/%2e%2e/sign-in/oidc",
    "/./console//sign-in/oidc",
)


@pytest.mark.parametrize("there", LOOPS)
@pytest.mark.hostile("T05")
async def test_it_does_not_lead_to_signing_in_again(running: Running, there: str) -> None:
    async with visitor_of(running) as browser:
        assert 'data-next="/"' in (await browser.get("/console/sign-in", params={"next": there})).text
        assert 'content="0; url=/"' in (await browser.get(await at_the_issuer(browser, there))).text


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none, cross-site", ""])
@pytest.mark.hostile("T05")
async def test_another_sites_page_begins_nothing(running: Running, issuer: SimulatedIssuer, site: str) -> None:
    """It could sign its visitor in unasked, and end an attempt that is under way."""
    async with visitor_of(running) as browser:
        back = await at_the_issuer(browser, "/console/upload")
        headers = {"sec-fetch-site": site}
        answer = await browser.get(BEGIN, headers=headers, params={"next": "/console/chat?a=b&b=c"})
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            "/console/sign-in?next=/console/chat%3Fa%3Db%26b%3Dc",
        )
        assert "set-cookie" not in answer.headers
        page = await browser.get(answer.headers["location"], headers=headers)
        assert "Sign in with single sign-on" in page.text
        assert "url=/console/upload" in (await browser.get(back)).text, "the attempt before it"


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_a_persons_own_click_and_address_begin(running: Running, site: str) -> None:
    async with visitor_of(running) as browser:
        begun = await browser.get(BEGIN, headers={"sec-fetch-site": site})
        assert "state=" in begun.headers["location"]


async def test_an_attempt_is_forgotten_once_it_was_answered_and_no_sooner(
    running: Running, issuer: SimulatedIssuer
) -> None:
    async with visitor_of(running) as browser:
        back = await at_the_issuer(browser)
        assert failed(await browser.get(re.sub("state=[^&]*", "state=x", back)))
        assert ATTEMPT_COOKIE in browser.cookies, "the answer was not its own"
        issuer.faults.status = 503
        assert failed(await browser.get(back), 503, ISSUER_AWAY.name)
        assert ATTEMPT_COOKIE in browser.cookies, "the code is still good"
        issuer.faults.status = 200
        assert failed(await browser.get(re.sub("code=[^&]*", "code=x", back)))
        assert ATTEMPT_COOKIE not in browser.cookies
        assert failed(await browser.get(back))
        refused = re.sub("code=[^&]*", "error=access_denied", await at_the_issuer(browser))
        assert failed(await browser.get(refused))
        assert ATTEMPT_COOKIE not in browser.cookies


async def test_a_long_way_back_is_given_up(running: Running) -> None:
    async with visitor_of(running) as browser:
        done = await browser.get(await at_the_issuer(browser, "/" + "ü" * 1990))
        assert 'content="0; url=/"' in done.text


async def test_a_session_ends_with_its_token(running: Running, issuer: SimulatedIssuer) -> None:
    expired = issuer.token(aud=CLIENT, exp=1)
    async with visitor_of(running) as browser:
        answer = await browser.get("/console/upload", headers={"cookie": f"{COOKIE}={expired}"})
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/console/sign-in?next=")


async def test_a_token_that_no_cookie_holds_is_explained(running: Running, issuer: SimulatedIssuer) -> None:
    issuer.claims["groups"] = ["x" * 60] * (MAX_TOKEN_BYTES // 60)
    async with visitor_of(running) as browser:
        answer = await browser.get(await at_the_issuer(browser))
        assert failed(answer)
        assert "leave claims out" in answer.text


async def test_an_issuer_that_is_away_leaves_the_form_for_keys(
    open_gateway: OpenHouse, issuer: SimulatedIssuer
) -> None:
    issuer.faults.away = True
    async with open_gateway(**settings(issuer.url)) as running, visitor_of(running) as browser:
        assert failed(await browser.get(BEGIN), 503, ISSUER_AWAY.name)
        signed = await browser.post("/console/session", data={"key": KEY}, headers={"X-Console": "1"})
        assert signed.status_code == 204
        assert (await browser.get("/")).status_code == 200


async def test_without_a_client_there_is_no_button_and_no_way(open_gateway: OpenHouse, issuer: SimulatedIssuer) -> None:
    for more in ({}, {"oidc_issuers": issuer.url, "oidc_audiences": "gateway"}):
        async with open_gateway(**more) as running, visitor_of(running) as browser:
            assert BEGIN not in (await browser.get("/console/sign-in")).text
            for path in (BEGIN, CALLBACK):
                assert failed(await browser.get(path), 404, NOT_FOUND.name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_in_a_browser_at_an_issuer_that_is_not_ours(serve: Serve, visitor: Visitor, real_issuer: str) -> None:
    """Another site (localhost, not 127.0.0.1): cookies that the browser would keep back would be missed here."""
    port = free_port()
    more = {"oidc_tenant_claim": "tenant", "oidc_roles_claim": "groups", "oidc_roles": "ml=upload,ml=chat"}
    more |= {"oidc_client_secret": "which it asks for and does not check"}
    url = serve(api_keys=KEY, port=port, **settings(real_issuer, f"{HERE}:{port}", **more))
    page = visitor.page()
    page.goto(f"{url}/console/upload?name=sql")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not [one["id"] for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    page.get_by_role("link", name="Sign in with single sign-on").click()
    page.get_by_role("button", name="alice@acme.example").click()
    page.wait_for_url(f"{url}/console/upload?name=sql")
    expect(page.get_by_label("Name")).to_have_value("sql")
    expect(page.get_by_role("link", name="Keys", exact=True)).to_have_count(0)
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("fetch('/adapters', {headers: {'X-Console': '1'}}).then(r => r.status)") == 200
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{url}/console/sign-in")
