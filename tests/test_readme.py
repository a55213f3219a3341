"""The README says what the code does."""

import re
from pathlib import Path

import pytest

from app.docs import TABLES, with_tables
from app.errors import CODES
from app.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_tables_are_the_codes_own() -> None:
    assert all(f"<!-- {name} -->" in TEXT for name in TABLES)
    assert with_tables(TEXT) == TEXT, "run: python -m app.docs README.md"


def test_every_setting_and_every_refusal_stands_in_it() -> None:
    assert all(f"GATEWAY_{name.upper()}" in TEXT for name in Settings.model_fields)
    assert all(f"`{name}`" in TEXT for name in CODES)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"GATEWAY_[A-Z_]+", TEXT))))
def test_no_setting_is_promised_that_does_not_exist(name: str) -> None:
    clients = {"GATEWAY_URL", "GATEWAY_API_KEY"}  # of the command-line client
    assert name in clients or name.removeprefix("GATEWAY_").lower() in Settings.model_fields


def test_it_promises_screened_and_never_more() -> None:
    for found in re.finditer(r"\bsafe\b", TEXT, re.IGNORECASE):
        around = TEXT[max(0, found.start() - 20) : found.end() + 12]
        assert "Safe LoRA" in around or "Safe Pruning" in around or "not mean" in around or "never" in around, around
