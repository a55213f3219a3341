"""The two files that say whose a store is: written at once or not at all, and not believed when damaged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.errors import STORE_FAILED, Unavailable
from app.store.artefacts.staging import MARK, mark_of
from app.store.catalogue.database import sqlite_url
from app.store.open import OWNER_FILE, owner_of


def owner(data: Path) -> str:
    return owner_of(data, sqlite_url(data / "catalogue.sqlite"))


KINDS: list[tuple[Callable[[Path], str], str]] = [(owner, OWNER_FILE), (mark_of, MARK)]
each = pytest.mark.parametrize(("read", "file"), KINDS, ids=["owner", "mark"])


@each
def test_it_is_made_once_and_stays(tmp_path: Path, read: Callable[[Path], str], file: str) -> None:
    first = read(tmp_path)
    assert len(first) >= 32
    assert read(tmp_path) == first
    assert os.listdir(tmp_path) == [file]


@each
@pytest.mark.parametrize("held", ["", "\n", "file:", "file:0123", "x" * 32, "file:" + "0" * 33, "ä"])
def test_what_is_damaged_is_refused_and_stays_as_it_is(
    tmp_path: Path, read: Callable[[Path], str], file: str, held: str
) -> None:
    (tmp_path / file).write_text(held, encoding="utf-8")
    with pytest.raises(Unavailable, match=r"damaged.*backup") as refused:
        read(tmp_path)
    assert refused.value.code is STORE_FAILED
    assert file in refused.value.message
    assert (tmp_path / file).read_text(encoding="utf-8") == held


@each
def test_a_crash_before_the_disk_has_it_leaves_nothing(
    tmp_path: Path, read: Callable[[Path], str], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    link, fsync = os.link, os.fsync

    def lost(fd: int) -> None:
        raise OSError(5, "Input/output error")

    def fsynced(fd: int) -> None:
        steps.append("fsync")
        fsync(fd)

    def linked(one: Path, other: Path) -> None:
        steps.append("link")
        link(one, other)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lost)
        with pytest.raises(Unavailable):
            read(tmp_path)
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(os, "fsync", fsynced)
    monkeypatch.setattr(os, "link", linked)
    read(tmp_path)
    assert steps == ["fsync", "link", "fsync"]


@each
def test_who_comes_second_takes_the_firsts(
    tmp_path: Path, read: Callable[[Path], str], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link
    theirs: list[str] = []

    def overtaken(one: Path, other: Path) -> None:
        if not theirs:
            theirs.append("")
            theirs[0] = read(tmp_path)
        link(one, other)

    monkeypatch.setattr(os, "link", overtaken)
    assert read(tmp_path) == theirs[0]
    assert os.listdir(tmp_path) == [file]
