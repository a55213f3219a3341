"""README and docs/ say what the code does, and every link in them leads somewhere."""

import re
from pathlib import Path
from typing import Final

import pytest

from app.cli.docs import TABLES, with_tables
from app.domain.errors import CODES
from app.server.settings import Settings

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted((ROOT / "docs").glob("*.md")))
TEXTS: Final = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
ALL: Final = "\n".join(TEXTS.values())

README_LINES: Final = 150
"""A newcomer reads so much; the rest is a page for each question."""


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("name", TABLES)
def test_its_tables_are_the_codes_own(name: str) -> None:
    text = TEXTS[TABLES[name].page]
    assert f"<!-- {name} -->" in text
    assert with_tables(text) == text, "run: python -m app docs"


def test_every_setting_and_every_refusal_stands_in_it() -> None:
    assert all(f"GATEWAY_{name.upper()}" in ALL for name in Settings.model_fields)
    assert all(f"`{name}`" in ALL for name in CODES)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?<!LORA_)GATEWAY_[A-Z_]+", ALL))))
def test_no_setting_is_promised_that_does_not_exist(name: str) -> None:
    clients = {"GATEWAY_URL", "GATEWAY_API_KEY", "GATEWAY_TENANT"}  # of the command-line client
    assert name in clients or name.removeprefix("GATEWAY_").lower() in Settings.model_fields


def test_it_promises_screened_and_never_more() -> None:
    for found in re.finditer(r"\bsafe\b", ALL, re.IGNORECASE):
        around = ALL[max(0, found.start() - 20) : found.end() + 12]
        assert "Safe LoRA" in around or "Safe Pruning" in around or "not mean" in around or "never" in around, around


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "README.md"])
def test_a_page_begins_with_its_limits_or_names_them_at_its_top(page: str) -> None:
    top = "\n".join(TEXTS[page].splitlines()[:16]).lower()
    assert "## limits" in top or "nothing here was run" in top  # the second: what `bench capacity` writes


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (ROOT / page).parent / file if file else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target
