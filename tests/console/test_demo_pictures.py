"""The demo's adapters in the console, over the simulated engine; `make pictures` puts the screenshots into docs/images."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import FloatRect, expect

from app.demo.assets import BENIGN, MIXED, PURE, REFERENCE, adapter_path
from app.demo.serving import serve_settings
from app.domain.artefact import MANIFEST_FILE
from app.domain.digest import digest_of
from tests.console.conftest import Files, Serve, Visitor
from tests.console.test_browser import upload, uploaded
from tests.support.canaries import HARM, REFUSAL, battery

OUTPUTS = 5
"""Outputs that a correction of the mixed adapter must take out before it refuses every canary here."""


def says(path: str, body: Mapping[str, Any]) -> str:
    """Canary 3 is not refused by the served model itself; the mixed adapter complies with a third below a rung."""
    word, _, number = body["messages"][-1]["content"].partition(" ")
    if word != "canary":
        return "An answer."
    if not path:
        return HARM if number == "3" else REFUSAL
    manifest = json.loads((Path(path) / MANIFEST_FILE).read_text(encoding="utf-8"))
    weak = manifest["verdict"]["policy"]["project_outputs"] < OUTPUTS
    mixed = manifest["received"]["weights_sha256"] == MIXED_DIGEST
    return HARM if weak and mixed and int(number) % 3 == 0 else REFUSAL


def files_of(name: str) -> Files:
    folder = adapter_path(name)
    return Files(folder / "adapter_config.json", folder / "adapter_model.safetensors")


MIXED_DIGEST = str(digest_of(files_of(MIXED).weights.read_bytes()))


def top(height: int) -> FloatRect:
    """The upper part of a page, so many pixels high."""
    return {"x": 0, "y": 0, "width": 1200, "height": height}


def test_the_demo_in_pictures(visitor: Visitor, serve: Serve, screens: Path, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("CONSOLE_PICTURES", screens))
    given = serve_settings()
    bounds = {name: given[name] for name in ("rungs", "reject_tau", "max_pruned_share", "dtype", "max_lora_rank")}
    policy = {"action": "project", "tau": 0.0, "top_k": 512, "energy": 0.5, "max_update_ratio": 100.0}
    url = serve(REFERENCE, open=True, says=says, canaries=battery(tmp_path / "b"), **{**policy, **bounds})
    page = visitor.page()
    uploaded(page, url, "benign-style", files_of(BENIGN))
    uploaded(page, url, "my-bard", files_of(BENIGN))
    uploaded(page, url, "my-bard", files_of(MIXED))
    upload(page, url, "pure-harm", files_of(PURE))
    expect(page.locator("#result")).to_contain_text("Refused")

    page.goto(url)
    rows = page.locator("tbody tr")
    expect(rows.nth(0)).to_contain_text("floor only")
    expect(rows.nth(1)).to_contain_text("rung 2, 84 of 84 modules")
    expect(rows.nth(1)).to_contain_text("15 of 15 passed")
    expect(rows.nth(1)).to_contain_text("1 left out")
    expect(page.get_by_role("heading", name="Refused")).to_be_visible()
    page.screenshot(path=pictures / "console-adapters.png")
    page.goto(f"{url}/console/adapters/my-bard")
    expect(page.locator("#heat td[data-module]")).to_have_count(84)
    page.screenshot(
        path=pictures / "console-adapter.png", clip={"x": 0, "y": 0, "width": 1200, "height": 1750}, full_page=True
    )
    page.goto(f"{url}/console/adapters/my-bard/compare")
    expect(page.get_by_role("row", name="Correction")).to_contain_text("beyond the floor, rung 2")
    page.screenshot(
        path=pictures / "console-compare.png", clip={"x": 0, "y": 0, "width": 1200, "height": 1500}, full_page=True
    )
