"""A siege of one minute (tests/faults/siege.py is the long one): every aim holds, and every attack was tried."""

from pathlib import Path

import pytest

from tests.faults.siege import Options, besiege
from tests.faults.siege_attacks import ATTACKS


@pytest.mark.engine
@pytest.mark.long
def test_a_healthy_key_chats_on_while_everything_attacks(tmp_path: Path) -> None:
    found = besiege(tmp_path, Options(minutes=1.0))
    print(*found.lines(), sep="\n")
    assert {kind for kind, _ in found.got} == {kind.__name__ for kinds in ATTACKS.values() for kind in kinds}
    assert not list(found.misses())
