"""The page of the API at /docs, in headless Chromium without any network but loopback."""

import httpx
import pytest
from playwright.sync_api import Request, expect

from app import __version__
from tests.console.conftest import Serve, Visitor
from tests.support.gateway import KEY


@pytest.mark.parametrize("settings", [{"open": True}, {"api_keys": KEY}], ids=["open", "with keys"])
def test_routes_are_shown_and_tried_with_the_visitors_key(
    visitor: Visitor, serve: Serve, settings: dict[str, object]
) -> None:
    url, page = serve(**settings), visitor.page()
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    page.goto(f"{url}/docs")
    if "api_keys" in settings:
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{url}/docs")
    row = page.locator("#operations-operations-version_version_get")
    expect(row).to_be_visible()
    expect(page.locator(".opblock")).not_to_have_count(0)
    row.locator(".opblock-summary").click()
    row.get_by_role("button", name="Try it out").click()
    row.get_by_role("button", name="Execute").click()
    expect(row.locator(".live-responses-table tr.response .response-col_status")).to_contain_text("200")
    expect(row.locator(".live-responses-table")).to_contain_text(__version__)
    assert {part.split("?")[0] for part in asked if not part.startswith((url, "data:"))} == set()


def test_programs_without_a_key_are_sent_to_sign_in(serve: Serve) -> None:
    answer = httpx.get(f"{serve(api_keys=KEY)}/docs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in?next=/docs")
