"""The console as a person uses it, in headless Chromium, over a whole gateway on loopback."""

import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import Files, Serve, Visitor
from tests.support.adapters import Upload
from tests.support.gateway import KEY, SERVED

PHONE = {"width": 360, "height": 740}
MakeFiles = Callable[[int], Files]


@pytest.fixture(scope="module")
def url(serve: Serve) -> str:
    """A gateway without keys, with a webhook."""
    url = serve(open=True, webhook_targets="https://hooks.example", webhook_secret="0123456789abcdef" * 2)
    made = httpx.post(f"{url}/tenants/default/webhooks", json={"url": f"https://hooks.example/{'long' * 30}?a=b"})
    assert made.status_code == 201, made.text
    return url


def upload(page: Page, url: str, name: str, files: Files) -> None:
    """Fill in the form and send it."""
    page.goto(f"{url}/console/upload")
    page.get_by_label("Name").fill(name)
    page.get_by_label("adapter_config.json").set_input_files(files.config)
    page.get_by_label("adapter_model.safetensors").set_input_files(files.weights)
    page.get_by_role("button", name="Upload and screen").click()


def uploaded(page: Page, url: str, name: str, files: Files) -> None:
    upload(page, url, name, files)
    expect(page.locator("#result")).to_contain_text("is ready")


def api(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path) as answer:
        return json.load(answer)


def test_an_adapters_whole_life_in_the_browser(
    visitor: Visitor, url: str, adapter_files: MakeFiles, screens: Path
) -> None:
    page = visitor.page()
    page.goto(url)
    expect(page.get_by_role("heading", name="No adapter yet")).to_be_visible()
    page.screenshot(path=screens / "empty.png")

    # upload, and watch it become ready
    upload(page, url, "mine", adapter_files(0))
    stages = page.locator("#stages li.done .what")
    expect(stages).to_have_text(["Sending", "Received", "Validated", "Screened", "Stored", "Ready"])
    expect(page.locator("#result")).to_contain_text("mine v1 is ready")
    page.screenshot(path=screens / "uploaded.png", full_page=True)

    # its heat map, by pointer and by keyboard
    page.get_by_role("link", name="Open its heat map").click()
    expect(page.get_by_role("heading", name="mine v1")).to_be_visible()
    report = api(url, "/adapters/mine/versions/1")["report"]["verdict"]
    cut = [m["name"] for m in report["modules"] if m["decision"] == "prune"]
    assert 0 < len(cut) < 8
    cells = page.locator("#heat td[data-module]")
    assert cells.count() == 8
    assert page.locator("#heat td.cut").evaluate_all("cells => cells.map(c => c.dataset.module)") == sorted(
        cut, key=lambda name: (name.split(".", 3)[3], name)
    )
    expect(page.locator("#heat td.cut").first).to_contain_text("×")
    cells.first.hover()
    expect(page.locator("#readout")).to_contain_text(str(cells.first.get_attribute("data-module")))
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_contain_text("model.layers.1.")
    page.get_by_text("Every module in a table").click()
    expect(page.locator(".modules tbody tr")).to_have_count(8)
    page.screenshot(path=screens / "adapter.png", full_page=True)

    # chat, beside the served model
    page.get_by_role("link", name="Chat beside the served model").click()
    expect(page.get_by_label("Left")).to_have_value("mine@1")
    expect(page.get_by_label("Right")).to_have_value(SERVED)
    page.get_by_label("Prompt, the same for both").fill("hello")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator(".answer .text")).to_have_text([re.compile("t0 t1 t2 t3 t4")] * 2)
    expect(page.locator(".answer .meta")).to_have_text([re.compile("^v1 .*5 tokens"), re.compile("5 tokens")])
    page.screenshot(path=screens / "chat.png")

    # what it answered is counted; a second version; back to the first; gone
    page.goto(url)
    expect(page.locator("tbody tr")).to_contain_text(["mine"])
    expect(page.locator("tbody td[data-label=Requests]")).to_have_text("1")
    uploaded(page, url, "mine", adapter_files(1))
    page.goto(f"{url}/console/adapters/mine")
    expect(page.get_by_role("heading", name="What changed since v1")).to_be_visible()
    page.get_by_role("button", name="Roll back to version 1").click()
    page.get_by_role("button", name="Cancel").click()
    assert api(url, "/adapters/mine")["active_version"] == 2
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_role("dialog")).to_contain_text("Version 2 stays, and answers as mine@2.")
    page.get_by_role("button", name="Yes, roll back to version 1").click()
    page.wait_for_url(f"{url}/console/adapters/mine?version=1")
    expect(page.get_by_text("the name points here")).to_be_visible()
    assert api(url, "/adapters/mine")["active_version"] == 1
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the report").click()
    assert download.value.suggested_filename == "mine-v1-report.json"
    assert json.loads(Path(download.value.path()).read_text()) == api(url, "/adapters/mine/versions/1")
    page.get_by_role("button", name="Delete mine").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 versions of mine are gone")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.get_by_role("button", name="Yes, delete mine").click()
    expect(page.get_by_role("heading", name="No adapter yet")).to_be_visible()


def test_a_refused_upload_shows_why_and_what_to_do(
    visitor: Visitor, url: str, adapter_files: MakeFiles, tmp_path: Path
) -> None:
    page, files = visitor.page(), adapter_files(0)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(Upload.valid(rank=32).weights_bytes)
    upload(page, url, "wrong", Files(files.config, weights))
    expect(page.locator("#result")).to_contain_text("Refused: wrong_shape")
    expect(page.locator("#result")).to_contain_text("Train the adapter on the served model")
    expect(page.locator("#stages li.broken .what")).to_have_text(["Validated"])
    page.goto(f"{url}/console/adapters/wrong")
    expect(page.locator(".card .alert").first).to_contain_text("wrong_shape")
    expect(page.locator(".card .alert").first).to_contain_text("What to do: Train the adapter")
    page.goto(f"{url}/console/upload")
    page.get_by_label("Name").fill("no spaces, please")
    page.get_by_role("button", name="Upload and screen").click()
    expect(page.locator("#result")).to_contain_text("begins with a letter or digit")


def test_what_happened_meanwhile_is_said_and_breaks_nothing(
    visitor: Visitor, url: str, adapter_files: MakeFiles
) -> None:
    page, other = visitor.page(), visitor.page()
    uploaded(page, url, "stale", adapter_files(2))
    page.goto(f"{url}/console/adapters/stale")
    chatting = visitor.page()
    chatting.goto(f"{url}/console/chat?a=stale@1")
    other.goto(f"{url}/console/adapters/stale")
    other.get_by_role("button", name="Delete stale").click()
    other.get_by_role("button", name="Yes").click()
    other.wait_for_url(f"{url}/")
    page.get_by_role("button", name="Delete stale").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#notice")).to_contain_text("no adapter 'stale'")
    page.reload()
    expect(page.get_by_role("heading", name="Not there")).to_be_visible()
    chatting.get_by_label("Prompt, the same").fill("hello")
    chatting.get_by_role("button", name="Ask both").click()
    expect(chatting.locator(".answer.refused .meta")).to_contain_text("does not exist")


PAGES = (
    "/",
    "/console/adapters/shown",
    "/console/adapters/shown/compare",
    "/console/upload",
    "/console/trends",
    "/console/usage",
    "/console/keys",
    "/console/limits",
    "/console/webhooks",
    "/console/tenants",
    "/console/engines",
    "/console/audit",
    "/console/settings",
    "/console/chat",
    "/console/sign-in",
    "/console/nothing",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_readable_on_a_phone_and_accessible(
    visitor: Visitor, url: str, adapter_files: MakeFiles, browser: Browser, screens: Path, scheme: Any
) -> None:
    if scheme == "light":
        for seed in (3, 4):
            uploaded(visitor.page(), url, "shown", adapter_files(seed))
    with browser.new_context(viewport=PHONE, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        for path in PAGES:
            page.goto(url + path)
            where = f"{path} in {scheme}"
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], where
            page.screenshot(path=screens / f"phone-{scheme}{path.replace('/', '-')}.png", full_page=True)
            found = Axe().run(page).response["violations"]
            grave = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
            assert not grave, where


def test_the_way_by_keyboard_alone(visitor: Visitor, url: str) -> None:
    page = visitor.page()
    page.goto(f"{url}/console/chat")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Left")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("hello")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".answer .text").first).to_contain_text("t4")


def test_a_chat_has_turns_a_system_prompt_and_models_to_choose_from(
    visitor: Visitor, url: str, adapter_files: MakeFiles
) -> None:
    page = visitor.page()
    uploaded(page, url, "talker", adapter_files(6))
    sent: list[Any] = []
    page.on("request", lambda one: sent.append(one.post_data_json) if "/completions" in one.url else None)
    page.goto(f"{url}/console/chat?a=talker")
    assert {"talker", "talker@1", SERVED} <= set(
        page.locator("#models option").evaluate_all("options => options.map(o => o.value)")
    )
    assert page.get_by_label("Left").get_attribute("list") == "models"
    expect(page.locator("#shortcut")).to_contain_text("Enter")
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("System prompt, for both").fill("be brief")
    for prompt in ("first", "second"):
        page.get_by_label("Prompt, the same").fill(prompt)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator(".answer .meta").first).to_contain_text("5 tokens")
        expect(page.get_by_label("Prompt, the same")).to_have_value("")
    words = "t0 t1 t2 t3 t4 "
    turns = [("system", "be brief"), ("user", "first"), ("assistant", words), ("user", "second")]
    assert {one["model"] for one in sent} == {"talker", SERVED}
    for one in sent[2:]:
        assert [(m["role"], m["content"]) for m in one["messages"]] == turns
    expect(page.locator(".answer h2").first).to_have_text("talker, turn 2")

    # another model begins anew on its side only; a new conversation does on both
    page.get_by_label("Right").fill("talker@1")
    page.get_by_label("Prompt, the same").fill("third")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator(".exchange")).to_have_count(3)
    expect(page.locator("#stop")).to_be_hidden()
    assert {one["model"]: len(one["messages"]) for one in sent[4:]} == {"talker": 6, "talker@1": 2}
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".exchange")).to_have_count(0)
    page.get_by_label("Prompt, the same").fill("anew")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".answer .meta").first).to_contain_text("5 tokens")
    assert [len(one["messages"]) for one in sent[6:]] == [2, 2]


def test_the_list_is_sorted_by_keyboard_and_filtered_without_scripts(
    browser: Browser, serve: Serve, adapter_files: MakeFiles, visitor: Visitor
) -> None:
    url = serve(open=True)
    for seed, name in enumerate(("b", "a")):
        uploaded(visitor.page(), url, name, adapter_files(seed))
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(url)
        names = page.locator("tbody th")
        expect(names).to_have_text([re.compile("^a"), re.compile("^b")])
        page.get_by_role("link", name="Uploaded").focus()
        page.keyboard.press("Enter")
        expect(names).to_have_text([re.compile("^b"), re.compile("^a")])
        page.get_by_role("link", name="Uploaded").press("Enter")
        expect(page.locator("[aria-sort=descending]")).to_contain_text("Uploaded")
        expect(names).to_have_text([re.compile("^a"), re.compile("^b")])
        page.get_by_label("Name contains").fill("B")
        page.keyboard.press("Enter")
        expect(names).to_have_text([re.compile("^b")])
        expect(page.locator("[aria-sort=descending]")).to_contain_text("Uploaded")
        page.get_by_role("navigation", name="State").get_by_role("link", name=re.compile("^Refused")).click()
        expect(page.get_by_text("No adapter here whose name contains “B”")).to_be_visible()
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(url)
        page.get_by_label("Sort by").select_option("uploaded")
        page.get_by_label("Order").select_option("desc")
        page.get_by_role("button", name="Filter").click()
        expect(names).to_have_text([re.compile("^a"), re.compile("^b")])
        assert page.locator("time").first.get_attribute("title")


def test_signing_in_and_out(visitor: Visitor, serve: Serve, adapter_files: MakeFiles) -> None:
    guarded, page = serve(api_keys=KEY), visitor.page()
    page.goto(f"{guarded}/console/upload?name=x")
    assert "/console/sign-in?next=" in page.url
    page.get_by_label("API key").fill("not-a-key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know that key")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{guarded}/console/upload?name=x")

    # everything the page does goes by the cookie, which no script can read
    uploaded(page, guarded, "mine", adapter_files(0))
    assert page.evaluate("document.cookie") == ""
    [cookie] = [found for found in visitor.context.cookies() if found["name"] == "gateway_console"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Strict", -1)
    assert page.evaluate("fetch('/adapters').then(r => r.status)") == 401  # without the console's header
    assert page.evaluate("fetch('/adapters', {headers: {'X-Console': '1'}}).then(r => r.status)") == 200

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{guarded}/console/sign-in")
    page.goto(f"{guarded}/console/adapters/mine")
    assert "/console/sign-in" in page.url
