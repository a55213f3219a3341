"""Names are bound by their first stored version: to a spelling, and to the owner of the key that uploaded it."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.api_keys import NOBODY, Uploader
from app.domain.errors import LOAD_FAILED, NAME_TAKEN, REJECTED, VERSION_NOT_READY, Refused, Unavailable
from app.domain.names import AdapterName
from app.domain.version_state import State
from app.store.catalogue.beginning import New
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.tables import VersionRow
from tests.store.making import NAME, artefact, begin_again, begun, published, received, stored, verdict

SPELLED = AdapterName("STYLE")
ALICE, BOB, ROOT = Uploader("alice"), Uploader("bob"), Uploader("root", admin=True)


@pytest.fixture
def catalogue(catalogue_url: str) -> Iterator[Catalogue]:
    made = Catalogue(catalogue_url)
    yield made
    made.close()


def stores(catalogue: Catalogue, row: VersionRow, seed: int = 0) -> VersionRow:
    catalogue.record_validated(row.name, row.number)
    catalogue.record_screened(row.name, row.number, verdict(), "{}")
    return catalogue.record_stored(row.name, row.number, artefact(seed).digest)


def pushed(catalogue: Catalogue, by: Uploader, seed: int = 0, name: AdapterName = NAME) -> VersionRow:
    return stores(catalogue, begun(catalogue, name, received(seed), by=by), seed)


@pytest.mark.hostile("N13")
@pytest.mark.parametrize("end", ["rejected", "failed", "in flight"])
def test_what_was_never_stored_binds_nobody(catalogue: Catalogue, end: str) -> None:
    garbage = begun(catalogue, SPELLED, received(1), by=BOB)
    if end == "rejected":
        catalogue.record_rejected(SPELLED, garbage.number, Refused(REJECTED, "no"))
    if end == "failed":
        catalogue.record_failed(SPELLED, garbage.number, Unavailable(LOAD_FAILED, "no"))
    row = pushed(catalogue, ALICE, 2)
    assert (row.name, row.number) == (NAME, garbage.number + 1)
    assert [(one.name, one.key_owner) for one in catalogue.adapters()] == [(NAME, "alice")]
    assert catalogue.version(SPELLED, garbage.number).name == SPELLED  # its uploader still finds what became of it
    (overview,), chapter = catalogue.overviews(), catalogue.chapter("", 10)
    assert [version.number for version in overview.versions] == [row.number]
    assert [version.number for version in chapter.adapters[0][1]] == [garbage.number, row.number]


@pytest.mark.hostile("N13")
@pytest.mark.parametrize("first", ["theirs", "mine"])
@pytest.mark.parametrize("other", [(SPELLED, ALICE), (NAME, BOB), (SPELLED, BOB)], ids=["spelling", "owner", "both"])
def test_of_two_in_flight_the_first_to_be_stored_has_the_name(
    catalogue: Catalogue, other: tuple[AdapterName, Uploader], first: str
) -> None:
    theirs = begun(catalogue, other[0], received(1), by=other[1])
    made = catalogue.begin(NAME, received(1), by=ALICE)
    assert isinstance(made, New), "equal bytes of another, or under another spelling, are another version"
    winner, loser = (theirs, made.row) if first == "theirs" else (made.row, theirs)
    stores(catalogue, winner)
    with pytest.raises(Refused) as refused:
        stores(catalogue, loser)
    assert refused.value.code is NAME_TAKEN
    assert catalogue.record_rejected(loser.name, loser.number, refused.value).state is State.REJECTED
    assert catalogue.adapter(winner.name).name == winner.name
    assert catalogue.adapter(winner.name).key_owner == winner.key_owner


@pytest.mark.hostile("N14")
def test_a_name_belongs_to_the_owner_of_the_key_that_made_it(catalogue: Catalogue) -> None:
    pushed(catalogue, ALICE, 1)
    pushed(catalogue, Uploader("alice"), 2)
    for seed in (1, 3):
        with pytest.raises(Refused, match="belongs to the owner of another key") as refused:
            catalogue.begin(NAME, received(seed), by=BOB)
        assert refused.value.code is NAME_TAKEN
        assert "alice" not in refused.value.message
    assert len(catalogue.versions(NAME)) == 2


def test_an_administrator_may_push_and_does_not_take_over(catalogue: Catalogue) -> None:
    pushed(catalogue, ALICE, 1)
    for by in (ROOT, NOBODY):
        assert pushed(catalogue, by, 2).key_owner == "alice"
        assert catalogue.adapter(NAME).key_owner == "alice"
    pushed(catalogue, ALICE, 3)
    pushed(catalogue, ROOT, 1, AdapterName("mine"))
    with pytest.raises(Refused, match=NAME_TAKEN.name):
        pushed(catalogue, BOB, 1, AdapterName("mine"))


def test_what_is_nobodys_is_open_to_anybody_until_it_is_transferred(catalogue: Catalogue) -> None:
    stored(catalogue, 1)
    pushed(catalogue, BOB, 2)
    assert catalogue.adapter(NAME).key_owner is None
    assert catalogue.transfer(NAME, "alice").key_owner == "alice"
    with pytest.raises(Refused, match=NAME_TAKEN.name):
        pushed(catalogue, BOB, 3)
    pushed(catalogue, ALICE, 3)


def test_a_version_under_way_during_a_transfer_is_refused(catalogue: Catalogue) -> None:
    pushed(catalogue, ALICE, 1)
    row = begun(catalogue, NAME, received(2), by=ALICE)
    catalogue.transfer(NAME, "bob")
    with pytest.raises(Refused, match=NAME_TAKEN.name):
        stores(catalogue, row)
    catalogue.record_rejected(NAME, row.number, Refused(NAME_TAKEN, "no"))
    again, mine = begin_again(catalogue, NAME, row.number, by=BOB)
    assert (again.number, again.key_owner, mine) == (row.number, "bob", True)


def test_a_name_that_nothing_binds_cannot_be_transferred(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1), by=ALICE)
    with pytest.raises(Refused, match=VERSION_NOT_READY.name):
        catalogue.transfer(NAME, "bob")


def test_a_deleted_name_is_anybodys_again(catalogue: Catalogue) -> None:
    pushed(catalogue, ALICE, 1)
    catalogue.delete(NAME)
    pushed(catalogue, BOB, 1, SPELLED)
    assert [(row.name, row.key_owner) for row in catalogue.adapters()] == [(SPELLED, "bob")]


def test_a_stored_version_that_is_tried_anew_keeps_the_name(catalogue: Catalogue) -> None:
    row = pushed(catalogue, ALICE, 1)
    catalogue.record_failed(NAME, row.number, Unavailable(LOAD_FAILED, "no"))
    begin_again(catalogue, NAME, row.number, by=ALICE)  # its artefact is gone: nothing is stored now
    with pytest.raises(Refused, match=NAME_TAKEN.name):
        begun(catalogue, SPELLED, received(2), by=ALICE)
    with pytest.raises(Refused, match=NAME_TAKEN.name):
        begun(catalogue, NAME, received(2), by=BOB)


def test_a_catalogue_from_before_has_names_that_are_bound_and_nobodys(tmp_path: Path) -> None:
    path, waiting = tmp_path / "c.db", AdapterName("waiting")
    catalogue = Catalogue(sqlite_url(path))
    published(catalogue, 1)
    begun(catalogue, waiting, received(1))
    published(catalogue, 1, AdapterName("gone"))
    catalogue.delete("gone")
    catalogue.close()
    older = sqlite3.connect(path)
    for table, column in (
        ("adapters", "key_owner"),
        ("adapters", "bound"),
        ("adapters", "traffic"),
        ("versions", "key_owner"),
        ("versions", "spelling"),
        ("versions", "evaluated"),
        ("versions", "rung"),
        ("versions", "failed_evaluation"),
        ("versions", "faults"),
    ):
        older.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    older.executescript(
        "DROP TABLE api_keys; DROP TABLE usage; DROP TABLE usage_batches; DROP TABLE audit_log;"
        "DROP TABLE tenant_limits; DROP TABLE tenant_budgets; DROP TABLE tenant_slots;"
        "DROP TABLE webhook_messages; DROP TABLE webhooks; DROP TABLE tenant_rules;"
    )
    older.executescript("UPDATE schema_info SET version = 4; UPDATE alembic_version SET version_num = '0004'")
    older.close()
    catalogue = Catalogue(sqlite_url(path))
    assert catalogue.version(NAME, 1).name == NAME
    with pytest.raises(Refused, match=NAME_TAKEN.name):
        pushed(catalogue, BOB, 2, SPELLED)
    assert pushed(catalogue, BOB, 2).number == 2
    assert pushed(catalogue, BOB, 2, AdapterName("WAITING")).name == AdapterName("WAITING")
    assert pushed(catalogue, BOB, 2, AdapterName("Gone")).number == 2
    catalogue.close()
