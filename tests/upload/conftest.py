from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upload.bodies import Door


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    opened = Door.at(tmp_path / "quarantine")
    yield opened
    opened.quarantine.close()
