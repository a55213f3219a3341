"""Pages about tenants in a real browser: the operator acts in one, makes, rotates and revokes a key, and sees its usage."""

import re
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect

from app.domain.api_keys import Role, new_key
from tests.console.conftest import Serve, Visitor
from tests.support.gateway import KEY, SERVED, form
from tests.support.receiver import receiving
from tests.support.waiting import STUCK_S


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/console/sign-in")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


def status(url: str, key: str, path: str = "/v1/models") -> int:
    return httpx.get(f"{url}{path}", headers={"Authorization": f"Bearer {key}"}).status_code


def test_limits_are_set_by_the_operator_and_shown_to_the_tenant(serve: Serve, visitor: Visitor, tmp_path: Path) -> None:
    key, stored = new_key("admin", [Role.ADMIN], tenant="acme")
    file = tmp_path / "keys"
    file.write_text(stored.line)
    url, page = serve(api_keys=KEY, api_keys_file=file), visitor.page()
    sign_in(page, url, KEY)
    page.goto(f"{url}/console/limits?tenant=acme")
    expect(page.get_by_role("heading", name="Limits of acme")).to_be_visible()
    page.get_by_label("Requests per minute").fill("600")
    page.get_by_label("Adapters").fill("0")
    page.get_by_role("button", name="Set the limits").click()
    expect(page.locator("#notice")).to_contain_text("The limits are set.")
    page.reload()
    expect(page.get_by_label("Requests per minute")).to_have_value("600")
    expect(page.get_by_label("Adapters")).to_have_value("0")
    expect(page.get_by_label("Bytes")).to_have_value("")
    page.goto(f"{url}/console/limits?tenant=default")
    expect(page.get_by_label("Requests per minute")).to_have_value("")

    theirs = visitor.page()
    theirs.context.clear_cookies()
    sign_in(theirs, url, key)
    theirs.get_by_role("link", name="Limits").click()
    expect(theirs.locator("tbody")).to_contain_text("600")
    expect(theirs.get_by_role("button", name="Set the limits")).to_have_count(0)


def test_the_operator_acts_in_a_tenant_from_its_first_key_on(serve: Serve, visitor: Visitor) -> None:
    url, page = serve(api_keys=KEY), visitor.page()
    sign_in(page, url, KEY)
    page.get_by_role("link", name="Tenants").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_label("Tenant").fill("acme")
    page.get_by_role("button", name="Act in it").click()
    expect(page.locator(".elsewhere")).to_contain_text("You act in the tenant acme")

    # a key, shown once
    page.get_by_role("link", name="Keys", exact=True).click()
    expect(page.get_by_role("heading", name="Keys of acme")).to_be_visible()
    page.get_by_label("Name").fill("app")
    page.get_by_label("upload").check()
    page.get_by_label("chat", exact=True).check()
    expect(page.get_by_label("metrics")).to_have_count(0)
    page.get_by_label("Expires after").fill("7")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#shown-key")).to_have_text(re.compile("^lg_"))
    first = page.locator("#shown-key").inner_text()
    assert status(url, first) == 200
    page.get_by_label("Name").fill("app")
    page.get_by_label("chat", exact=True).check()
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#notice")).to_contain_text("there is a key 'app' already")
    page.reload()
    expect(page.locator("body")).not_to_contain_text(first)
    expect(page.locator("tbody tr")).to_contain_text(["app"])

    # its uploads and usage, in its tenant and nowhere else
    own = {"Authorization": f"Bearer {first}"}
    assert httpx.post(f"{url}/adapters", files=form("sql"), headers=own, timeout=60).status_code == 201
    body = {"model": "sql", "messages": [{"role": "user", "content": "hello"}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=own).status_code == 200
    page.get_by_role("link", name="Adapters", exact=True).click()
    expect(page.locator("tbody tr")).to_contain_text(["sql"])
    page.get_by_role("link", name="sql").click()
    expect(page.get_by_role("heading", name="sql v1")).to_be_visible()
    page.get_by_role("link", name="Usage").click()
    expect(page.locator("tbody tr")).to_contain_text([re.compile("app.*sql.*1")])
    expect(page.locator("svg.chart rect")).to_have_count(1)

    # rotated, revoked, and back
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_role("button", name="Rotate").click()
    page.get_by_role("button", name="Yes, rotate it").click()
    expect(page.locator("#shown-key")).to_have_text(re.compile("^lg_"))
    second = page.locator("#shown-key").inner_text()
    assert {status(url, key) for key in (first, second)} == {200}
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="No").click()
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Yes, revoke it").click()
    expect(page.get_by_text("No key was made yet.")).to_be_visible()
    assert {status(url, key) for key in (first, second)} == {401}
    page.get_by_role("button", name="Back to default").click()
    expect(page.locator(".elsewhere")).to_have_count(0)
    expect(page.get_by_role("heading", name="No adapter yet")).to_be_visible()
    page.get_by_role("link", name="Tenants").click()
    expect(page.locator("tbody tr")).to_contain_text(["acme", "default"])


def test_a_webhook_is_made_tried_and_deleted(serve: Serve, visitor: Visitor) -> None:
    with receiving() as receiver:
        secret = "0123456789abcdef" * 2
        url, page = serve(api_keys=KEY, webhook_targets=receiver.origin, webhook_secret=secret), visitor.page()
        sign_in(page, url, KEY)
        page.get_by_role("link", name="Webhooks").click()
        expect(page.get_by_text("There is no webhook yet.")).to_be_visible()
        page.get_by_label("URL").fill("https://elsewhere.example/in")
        page.get_by_role("button", name="Make the webhook").click()
        expect(page.locator("#notice")).to_contain_text("the url")
        page.get_by_label("URL").fill(f"{receiver.origin}/in?token=t")
        page.get_by_label("quota.reached").uncheck()
        page.get_by_role("button", name="Make the webhook").click()
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#shown-secret")).to_have_text(re.compile("^whsec_"))
        signed_by = page.locator("#shown-secret").inner_text()
        page.get_by_role("link", name="Go on").click()
        expect(page.locator("#webhooks tbody th")).to_contain_text([f"{receiver.origin}/in?token=t"])
        expect(page.locator("#webhooks tbody td").first).to_contain_text("version.canaries_failed, version.failed")
        expect(page.locator("#webhooks")).not_to_contain_text("quota")
        expect(page.locator("body")).not_to_contain_text(signed_by)

        page.get_by_role("button", name="Try it").click()
        page.wait_for_url(re.compile(r"/console/webhooks\?webhook=wh_"))
        until = time.monotonic() + STUCK_S
        while not page.locator("#messages", has_text="delivered").count():  # a page does not change by itself
            assert time.monotonic() < until
            page.reload()
        expect(page.locator("#messages tbody tr")).to_contain_text([re.compile("ping.*delivered.*1.*200", re.DOTALL)])
        assert receiver.got[0].verified(signed_by)["type"] == "ping"

        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="No").click()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Yes, delete it").click()
        page.wait_for_url(f"{url}/console/webhooks")
        expect(page.get_by_text("There is no webhook yet.")).to_be_visible()


def test_a_gateway_without_targets_offers_no_webhook(serve: Serve, visitor: Visitor) -> None:
    page = visitor.page()
    page.goto(f"{serve(open=True)}/console/webhooks")
    expect(page.get_by_text("The operator allows no target of webhooks")).to_be_visible()
    expect(page.get_by_role("button", name="Make the webhook")).to_have_count(0)


def test_a_tenants_administrator_sees_its_own_pages_only(serve: Serve, visitor: Visitor, tmp_path: Path) -> None:
    key, stored = new_key("admin", [Role.ADMIN], tenant="acme")
    file = tmp_path / "keys"
    file.write_text(stored.line)
    url, page = serve(api_keys=KEY, api_keys_file=file), visitor.page()
    sign_in(page, url, KEY)
    page.goto(f"{url}/console/tenants")
    page.get_by_label("Tenant").fill("globex")
    page.get_by_role("button", name="Act in it").click()
    expect(page.locator(".elsewhere")).to_be_visible()
    sign_in(page, url, key)  # another visitor at the same browser: the operator's choice is forgotten
    expect(page.locator(".elsewhere")).to_have_count(0)
    links = page.get_by_role("navigation", name="Console").get_by_role("link").all_inner_texts()
    assert links == ["Adapters", "Upload", "Chat", "Trends", "Usage", "Keys", "Limits", "Webhooks"]
    for path in ("/console/tenants", "/console/engines", "/console/settings", "/console/audit"):
        page.goto(url + path)
        expect(page.locator("main")).to_contain_text("for the operator's keys")
    page.goto(f"{url}/console/chat")
    assert page.locator("#models option").evaluate_all("all => all.map(o => o.value)") == [SERVED]
