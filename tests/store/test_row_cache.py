"""Published versions read at every change: what has not changed is the same object, and what has is never stale."""

from pathlib import Path

import pytest

from app.domain.names import AdapterName
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.row_cache import ONE_BY_ONE
from tests.store.making import NAME, stored


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(sqlite_url(tmp_path / "c.sqlite"))


def published(catalogue: Catalogue, name: AdapterName, seed: int | str = 0) -> int:
    return catalogue.activate(name, stored(catalogue, seed, name).number).number


def fresh(catalogue: Catalogue, tmp_path: Path) -> object:
    """What one who remembers nothing reads."""
    return Catalogue(sqlite_url(tmp_path / "c.sqlite")).served()


def test_what_has_not_changed_is_the_same_object(catalogue: Catalogue) -> None:
    other = AdapterName("other")
    published(catalogue, NAME, 1)
    published(catalogue, other, 2)
    before = {row.name: row for row in catalogue.served()}
    published(catalogue, NAME, 3)
    after = {(row.name, row.number): row for row in catalogue.served()}
    assert after[other, 1] is before[other]
    assert after[NAME, 1] is not before[NAME]


def test_every_change_is_seen(catalogue: Catalogue, tmp_path: Path) -> None:
    def same() -> bool:
        return catalogue.served() == fresh(catalogue, tmp_path)

    assert same()
    published(catalogue, NAME, 1)
    assert same()
    published(catalogue, NAME, 2)
    assert same()
    catalogue.rollback(NAME)
    assert same()
    assert [row.number for row in catalogue.served()] == [1, 2]
    catalogue.rollback(NAME, 2)
    assert same()
    catalogue.delete(NAME)
    assert same()
    assert catalogue.served() == ()
    published(catalogue, NAME, 1)
    assert same()


def test_changes_of_another_process_are_seen(catalogue: Catalogue, tmp_path: Path) -> None:
    published(catalogue, NAME, 1)
    assert len(catalogue.served()) == 1
    published(Catalogue(sqlite_url(tmp_path / "c.sqlite")), NAME, 2)
    assert [row.number for row in catalogue.served()] == [2, 1]


def test_more_changes_than_are_asked_for_one_by_one(catalogue: Catalogue, tmp_path: Path) -> None:
    for number in range(ONE_BY_ONE + 1):
        published(catalogue, AdapterName(f"a{number}"), number)
    assert len(catalogue.served()) == ONE_BY_ONE + 1
    assert catalogue.served() == fresh(catalogue, tmp_path)
    published(catalogue, AdapterName("z"), "z")
    assert catalogue.served() == fresh(catalogue, tmp_path)
