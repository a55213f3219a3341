"""What was made once is found again, but only whole."""

from pathlib import Path

import pytest

from app.bench.safety.cache import Cache
from app.bench.safety.plan import SMALL, FineTune


def test_made_once_and_found_again(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(b"1234")

    one = Cache(tmp_path).folder("pair", (SMALL, 0), make)
    two = Cache(tmp_path).folder("pair", (SMALL, 0), make)
    other = Cache(tmp_path).folder("pair", (SMALL, 1), make)
    assert one == two != other
    assert len(made) == 2
    assert (one / "deep" / "weights").read_bytes() == b"1234"


def test_a_damaged_entry_is_noticed_and_made_again(tmp_path: Path) -> None:
    noticed: list[Path] = []
    cache = Cache(tmp_path, noticed.append)
    folder = cache.folder("adapter", FineTune(0.1, "qv", 8), lambda f: _write(f, b"good"))
    for damage in (lambda: (folder / "w").write_bytes(b"gone"), (folder / "w").unlink, (folder / "sealed.json").unlink):
        damage()
        assert cache.folder("adapter", FineTune(0.1, "qv", 8), lambda f: _write(f, b"good")) == folder
        assert (folder / "w").read_bytes() == b"good"
    assert noticed == [folder] * 3


def test_what_was_interrupted_is_not_there(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        _write(folder, b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).folder("rows", "x", killed)
    folder = Cache(tmp_path).folder("rows", "x", lambda f: _write(f, b"whole"))
    assert (folder / "w").read_bytes() == b"whole"


def _write(folder: Path, data: bytes) -> None:
    (folder / "w").write_bytes(data)
