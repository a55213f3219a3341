"""No kind of the list is without a test that names it."""

import re
from pathlib import Path

import pytest

from tests.attacks.kinds import KINDS

TESTS = Path(__file__).parents[1]
TEXT = "\n".join(
    path.read_text(encoding="utf-8")
    for path in TESTS.rglob("test_*.py")
    if path.name != "test_kinds.py" and "pytest.mark." in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("kind", KINDS)
def test_is_tried(kind: str) -> None:
    by_mark = re.search(rf'mark\.(?:hostile|ruling)\([^)]*"{kind}"', TEXT)
    by_case = re.search(rf'"{kind}_', TEXT)
    assert by_mark or by_case, f"no test tries {kind}: {KINDS[kind]}"
