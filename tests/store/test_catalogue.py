"""What the catalogue says and refuses, one caller at a time (test_concurrency.py has many)."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from app.domain.digest import digest_of
from app.domain.errors import (
    ADAPTER_NOT_FOUND,
    LOAD_FAILED,
    NAME_TAKEN,
    SCREENING_FAILED,
    SCREENING_TIMEOUT,
    STORE_BUSY,
    STORE_FAILED,
    VERSION_NOT_FOUND,
    VERSION_NOT_READY,
    Code,
    Refused,
    Unavailable,
)
from app.domain.errors import REJECTED as REJECTED_CODE
from app.domain.manifest import verdict_json
from app.domain.names import AdapterName
from app.domain.verdict import Decision, Outcome
from app.domain.version_state import IllegalMove, State
from app.store.catalogue.beginning import New, Same
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.tables import SCHEMA_VERSION, versions
from tests.store.making import NAME, artefact, begin_again, begun, published, received, stored, verdict

OTHER = AdapterName("other")


@pytest.fixture
def catalogue(catalogue_url: str) -> Iterator[Catalogue]:
    opened = Catalogue(catalogue_url)
    yield opened
    opened.close()


def refuses(code: Code) -> pytest.RaisesExc[Refused]:
    return pytest.RaisesExc(Refused, match=f"^{code.name}: ")


def states(catalogue: Catalogue, name: AdapterName = NAME) -> dict[int, State]:
    return {row.number: row.state for row in catalogue.versions(name)}


# ---- uploads -----------------------------------------------------------------------------------------------------


def test_a_version_from_beginning_to_ready(catalogue: Catalogue) -> None:
    row = begun(catalogue, NAME, received(1), "parameters")
    assert (row.name, row.number, row.state, row.received) == (NAME, 1, State.RECEIVED, received(1))
    assert (row.outcome, row.artefact, row.engine_name, row.error_code, row.modules_total) == (None,) * 5
    assert row.parameters == "parameters"
    assert catalogue.adapter(NAME).active is None
    assert catalogue.record_validated(NAME, 1).state is State.VALIDATED
    row = catalogue.record_screened(NAME, 1, verdict(), '{"a": 1}')
    assert (row.state, row.outcome, row.verdict_id) == (State.SCREENED, Outcome.PRUNED, verdict().id)
    assert (row.modules_total, row.modules_pruned, row.modules_projected) == (2, 1, 0)
    digest = artefact(1).digest
    row = catalogue.record_stored(NAME, 1, digest)
    assert (row.state, row.artefact, row.engine_name) == (State.STORED, digest, f"style@{digest.short}")
    assert catalogue.resolve(NAME) is None
    row = catalogue.activate(NAME, 1)
    assert row.state is State.READY
    assert catalogue.resolve(NAME) == catalogue.resolve("style", 1) == catalogue.version("style", 1) == row
    assert catalogue.adapter(NAME).active == 1
    assert catalogue.report(NAME, 1) == '{"a": 1}'


def test_an_emptied_version_has_no_artefact(catalogue: Catalogue) -> None:
    number = begun(catalogue, NAME, received(1)).number
    catalogue.record_validated(NAME, number)
    row = catalogue.record_screened(NAME, number, verdict([Decision.PRUNE]), "{}")
    assert row.emptied
    with pytest.raises(ValueError, match="does not fit"):
        catalogue.record_stored(NAME, number, artefact(1).digest)
    row = catalogue.record_stored(NAME, number, None)
    assert (row.artefact, row.engine_name) == (None, None)
    assert catalogue.pending() == (row,)
    row = catalogue.activate(NAME, number)
    assert catalogue.resolve(NAME) == row
    assert catalogue.served() == (row,)
    assert catalogue.servable() == ()


def test_only_an_emptied_version_has_no_artefact(catalogue: Catalogue) -> None:
    number = begun(catalogue, NAME, received(1)).number
    catalogue.record_validated(NAME, number)
    catalogue.record_screened(NAME, number, verdict(), "{}")
    with pytest.raises(ValueError, match="does not fit"):
        catalogue.record_stored(NAME, number, None)
    assert catalogue.version(NAME, number).state is State.SCREENED


def test_a_rejection_keeps_its_words_and_its_report(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    catalogue.record_validated(NAME, 1)
    row = catalogue.record_rejected(NAME, 1, Refused(REJECTED_CODE, "m.0 is\nbad"), verdict(), '{"r": 0}')
    assert (row.state, row.error_code, row.error_message) == (State.REJECTED, "rejected", "m.0 is\\nbad")
    assert (row.modules_total, row.verdict_id) == (2, verdict().id)
    assert catalogue.report(NAME, 1) == '{"r": 0}'
    begun(catalogue, NAME, received(2))
    row = catalogue.record_rejected(NAME, 2, Refused(REJECTED_CODE, "at once"))
    assert (row.state, row.verdict_id) == (State.REJECTED, None)
    assert catalogue.report(NAME, 2) is None


def test_a_failure_of_a_stored_version_leaves_the_active_one(catalogue: Catalogue) -> None:
    published(catalogue, 1)
    row = catalogue.record_failed(NAME, stored(catalogue, 2).number, Unavailable(LOAD_FAILED, "no"))
    assert (row.state, row.error_code) == (State.FAILED, "load_failed")
    assert catalogue.adapter(NAME).active == 1


def test_moves_that_are_not_drawn_change_nothing(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    with pytest.raises(IllegalMove):
        catalogue.record_screened(NAME, 1, verdict(), "{}")
    with pytest.raises(ValueError, match="does not fit"):
        catalogue.record_stored(NAME, 1, None)
    assert catalogue.version(NAME, 1).state is State.RECEIVED
    published(catalogue, 2)
    for call in (catalogue.record_rejected, catalogue.record_failed):
        with pytest.raises(IllegalMove):
            call(NAME, 2, Refused(REJECTED_CODE, "late"))
    assert catalogue.version(NAME, 2).state is State.READY


# ---- the same bytes again ----------------------------------------------------------------------------------------


def test_the_same_bytes_again_are_found(catalogue: Catalogue) -> None:
    first = begun(catalogue, NAME, received(1), "p")
    assert catalogue.find_same(NAME, received(1)) == catalogue.find_same("style", received(1), "p") == first
    assert catalogue.find_same(NAME, received(2)) is None
    assert catalogue.find_same(NAME, received(1), "q") is None
    assert catalogue.find_same(OTHER, received(1)) is None
    assert catalogue.begin(NAME, received(1), "p") == Same(first)
    second = catalogue.begin(NAME, received(1), "q")
    assert isinstance(second, New)
    assert second.row.number == 2
    assert catalogue.find_same(NAME, received(1)) == second.row


def test_failed_and_deleted_versions_are_not_the_same(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    failed = catalogue.record_failed(NAME, 1, Unavailable(SCREENING_FAILED, "x"))
    assert catalogue.find_same(NAME, received(1)) is None
    assert catalogue.begin(NAME, received(1)) == Same(failed)
    second = begun(catalogue, NAME, received(1))
    assert catalogue.begin(NAME, received(1)) == Same(second)
    catalogue.delete(NAME)
    assert catalogue.find_same(NAME, received(1)) is None
    assert catalogue.begin(NAME, received(1)).row.number == 3


def test_a_rejected_version_is_found_again(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    row = catalogue.record_rejected(NAME, 1, Refused(REJECTED_CODE, "x"))
    assert catalogue.begin(NAME, received(1)) == Same(row)


@pytest.mark.parametrize("as_far_as", ["received", "screened", "rejected"])
def test_what_failed_on_its_way_begins_again_with_nothing_said(catalogue: Catalogue, as_far_as: str) -> None:
    first = begun(catalogue, NAME, received(1), "p")
    if as_far_as == "screened":
        catalogue.record_validated(NAME, 1)
        catalogue.record_screened(NAME, 1, verdict(), "{}")
    if as_far_as == "rejected":
        catalogue.record_rejected(NAME, 1, Refused(REJECTED_CODE, "x"), verdict(), "{}")
    else:
        catalogue.record_failed(NAME, 1, Unavailable(SCREENING_FAILED, "x"))
    again, mine = begin_again(catalogue, NAME, 1)
    assert (replace(again, updated_at=first.updated_at, revision=first.revision), mine) == (first, True)
    assert catalogue.report(NAME, 1) is None
    assert begin_again(catalogue, NAME, 1) == (again, False)
    assert [row.number for row in catalogue.versions(NAME)] == [1]


def test_what_the_engine_refused_is_stored_again_under_its_engine_name(catalogue: Catalogue) -> None:
    first = stored(catalogue, 1)
    catalogue.record_failed(NAME, 1, Unavailable(LOAD_FAILED, "no"))
    again, mine = begin_again(catalogue, NAME, 1, intact=True)
    assert (replace(again, updated_at=first.updated_at, revision=first.revision), mine) == (first, True)
    assert catalogue.report(NAME, 1) == '{"seed": "1"}'
    catalogue.record_failed(NAME, 1, Unavailable(LOAD_FAILED, "no"))
    lost, _ = begin_again(catalogue, NAME, 1)
    assert (lost.state, lost.artefact, lost.engine_name) == (State.RECEIVED, None, None)
    catalogue.record_validated(NAME, 1)
    catalogue.record_screened(NAME, 1, verdict(seed=1), "{}")
    assert catalogue.record_stored(NAME, 1, artefact(1).digest).engine_name == first.engine_name
    assert catalogue.activate(NAME, 1).state is State.READY
    assert begin_again(catalogue, NAME, 1, intact=True) == (catalogue.version(NAME, 1), False)


def test_behind_a_later_version_it_gets_a_number_the_name_can_move_to(catalogue: Catalogue) -> None:
    stored(catalogue, 1)
    catalogue.record_failed(NAME, 1, Unavailable(LOAD_FAILED, "no"))
    published(catalogue, 2)
    again, mine = begin_again(catalogue, NAME, 1, intact=True)
    assert (again.number, again.state, again.received, mine) == (3, State.RECEIVED, received(1), True)
    assert states(catalogue) == {1: State.FAILED, 2: State.READY, 3: State.RECEIVED}
    assert catalogue.begin(NAME, received(1)) == Same(again)


def test_nor_is_it_tried_again_behind_one_that_comes_later(catalogue: Catalogue) -> None:
    """The name goes to the bytes that came last, whichever of them an engine has first."""
    stored(catalogue, 1)
    catalogue.record_failed(NAME, 1, Unavailable(LOAD_FAILED, "no"))
    stored(catalogue, 2)
    again, mine = begin_again(catalogue, NAME, 1, intact=True)
    assert (again.number, again.state, mine) == (3, State.RECEIVED, True)
    catalogue.record_failed(NAME, 3, Unavailable(SCREENING_FAILED, "x"))
    catalogue.record_failed(NAME, 2, Unavailable(LOAD_FAILED, "no"))
    assert begin_again(catalogue, NAME, 3)[0].number == 3, "nothing comes after it any more"


def test_who_asks_late_is_given_the_new_number_too(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1), "p")
    catalogue.record_failed(NAME, 1, Unavailable(SCREENING_FAILED, "x"))
    published(catalogue, 2)
    again, _ = begin_again(catalogue, NAME, 1)
    assert begin_again(catalogue, NAME, 1) == (again, False)
    assert begin_again(catalogue, NAME, 1, after=2) == (again, False)


def test_of_those_that_ended_the_newest_is_tried_again(catalogue: Catalogue) -> None:
    """However they ended: else what was too slow once had a new number each time it fails."""
    begun(catalogue, NAME, received(1), "p")
    catalogue.record_rejected(NAME, 1, Refused(SCREENING_TIMEOUT, "slow"))
    published(catalogue, 2)
    assert begin_again(catalogue, NAME, 1)[0].number == 3
    failed = catalogue.record_failed(NAME, 3, Unavailable(SCREENING_FAILED, "x"))
    assert catalogue.begin(NAME, received(1), "p") == Same(failed)


def test_nothing_begins_again_that_somebody_overtook(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    catalogue.record_failed(NAME, 1, Unavailable(SCREENING_FAILED, "x"))
    begun(catalogue, NAME, received(2))
    with refuses(VERSION_NOT_READY):
        begin_again(catalogue, NAME, 1, after=1)
    assert catalogue.version(NAME, 1).state is State.FAILED
    assert begin_again(catalogue, NAME, 1, after=2)[1]


# ---- names -------------------------------------------------------------------------------------------------------


def test_a_name_that_differs_only_in_case_is_taken(catalogue: Catalogue) -> None:
    stored(catalogue, 1)
    with refuses(NAME_TAKEN):
        catalogue.begin(AdapterName("STYLE"), received(2))
    assert len(catalogue.versions(NAME)) == 1
    with refuses(ADAPTER_NOT_FOUND):
        catalogue.adapter("STYLE")


def test_numbers_go_on_after_a_deletion_and_engine_names_stay_dead(catalogue: Catalogue) -> None:
    published(catalogue, 1)
    gone = published(catalogue, 2)
    deleted = catalogue.delete(NAME)
    assert [row.number for row in deleted] == [1, 2]
    assert [row.state for row in deleted] == [State.RETIRED, State.READY]
    assert catalogue.adapters() == ()
    assert catalogue.resolve(NAME) is catalogue.resolve(NAME, 2) is None
    for call in (catalogue.adapter, catalogue.versions, catalogue.delete, catalogue.rollback):
        with refuses(ADAPTER_NOT_FOUND):
            call(NAME)
    spelled = AdapterName("Style")
    row = published(catalogue, 3, spelled)
    assert (row.number, row.name) == (3, spelled)
    assert states(catalogue, spelled) == {3: State.READY}
    with refuses(VERSION_NOT_FOUND):
        catalogue.version(spelled, 2)
    catalogue.delete(spelled)
    again = stored(catalogue, 2, digest=gone.artefact)
    assert (again.number, again.engine_name) == (4, f"{gone.engine_name}-4")


def test_two_versions_with_the_same_artefact_have_two_engine_names(catalogue: Catalogue) -> None:
    one = stored(catalogue, 1, digest=artefact(1).digest)
    two = stored(catalogue, 2, digest=artefact(1).digest)
    other = stored(catalogue, 1, OTHER, digest=artefact(1).digest)
    names = [one.engine_name, two.engine_name, other.engine_name]
    short = artefact(1).digest.short
    assert names == [f"style@{short}", f"style@{short}-2", f"other@{short}"]
    assert catalogue.live_digests() == {artefact(1).digest}


def test_an_upload_in_flight_finds_its_deleted_version_gone(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    catalogue.delete(NAME)
    with refuses(ADAPTER_NOT_FOUND):
        catalogue.record_validated(NAME, 1)
    begun(catalogue, NAME, received(2))
    with refuses(VERSION_NOT_FOUND):
        catalogue.record_validated(NAME, 1)


def test_what_a_stranger_wrote_for_a_name_finds_nothing(catalogue: Catalogue) -> None:
    published(catalogue, 1)
    for name in ("", "../../x", "style\n", "style@1", "' OR 1=1 --", "\x00", "x" * 100_000, "ſtyle", "%"):
        assert catalogue.resolve(name) is None
        with refuses(ADAPTER_NOT_FOUND) as caught:
            catalogue.adapter(name)
        assert len(str(caught.value)) < 500
    for number in (0, -1, 2, 10**9):
        assert catalogue.resolve(NAME, number) is None
        with refuses(VERSION_NOT_FOUND):
            catalogue.version(NAME, number)


def test_adapters_are_listed_by_name_with_those_that_have_nothing_yet(catalogue: Catalogue) -> None:
    published(catalogue, 1, AdapterName("b"))
    begun(catalogue, AdapterName("A"), received(2))
    published(catalogue, 3, AdapterName("c"))
    assert [(str(row.name), row.active) for row in catalogue.adapters()] == [("A", None), ("b", 1), ("c", 1)]


# ---- the alias ---------------------------------------------------------------------------------------------------


def test_a_new_version_retires_the_old_one_which_stays_addressable(catalogue: Catalogue) -> None:
    one, two = published(catalogue, 1), published(catalogue, 2)
    assert states(catalogue) == {1: State.RETIRED, 2: State.READY}
    assert catalogue.resolve(NAME) == two
    assert catalogue.resolve(NAME, 1) == catalogue.version(NAME, 1)
    assert [row.engine_name for row in catalogue.servable()] == [two.engine_name, one.engine_name]


def test_the_name_never_moves_backwards_by_itself(catalogue: Catalogue) -> None:
    one, two = stored(catalogue, 1), stored(catalogue, 2)
    assert catalogue.activate(NAME, two.number).state is State.READY
    assert catalogue.activate(NAME, one.number).state is State.RETIRED
    assert catalogue.adapter(NAME).active == two.number
    assert catalogue.activate(NAME, one.number).state is State.RETIRED
    assert catalogue.activate(NAME, two.number).state is State.READY
    assert states(catalogue) == {1: State.RETIRED, 2: State.READY}


@pytest.mark.parametrize("end", ["received", "validated", "screened", "rejected", "failed"])
def test_only_a_stored_version_can_be_published(catalogue: Catalogue, end: str) -> None:
    begun(catalogue, NAME, received(1))
    if end == "rejected":
        catalogue.record_rejected(NAME, 1, Refused(REJECTED_CODE, "x"))
    if end == "failed":
        catalogue.record_failed(NAME, 1, Unavailable(SCREENING_FAILED, "x"))
    if end in {"validated", "screened"}:
        catalogue.record_validated(NAME, 1)
    if end == "screened":
        catalogue.record_screened(NAME, 1, verdict(), "{}")
    assert catalogue.version(NAME, 1).state == end
    for call in (catalogue.activate, catalogue.rollback):
        with refuses(VERSION_NOT_READY):
            call(NAME, 1)


def test_rollback_goes_back_and_forth(catalogue: Catalogue) -> None:
    for seed in (1, 2, 3):
        published(catalogue, seed)
    assert catalogue.rollback(NAME).number == 2
    assert states(catalogue) == {1: State.RETIRED, 2: State.READY, 3: State.RETIRED}
    assert catalogue.rollback(NAME).number == 1
    with refuses(VERSION_NOT_READY):
        catalogue.rollback(NAME)
    row = catalogue.rollback(NAME, 3)
    assert catalogue.resolve(NAME) == row == catalogue.rollback(NAME, 3)
    with refuses(VERSION_NOT_FOUND):
        catalogue.rollback(NAME, 4)
    catalogue.rollback(NAME, 1)
    assert published(catalogue, 4).number == catalogue.adapter(NAME).active == 4


def test_rollback_needs_a_published_version(catalogue: Catalogue) -> None:
    stored(catalogue, 1)
    for to in (None, 1):
        with refuses(VERSION_NOT_READY):
            catalogue.rollback(NAME, to)


# ---- restart -----------------------------------------------------------------------------------------------------


def test_recovery_fails_what_was_in_flight_and_keeps_what_was_stored(catalogue_url: str) -> None:
    url = catalogue_url
    catalogue = Catalogue(url)
    kept, waiting = published(catalogue, 1), stored(catalogue, 2)
    for seed in (3, 4, 5):
        begun(catalogue, NAME, received(seed))
    catalogue.record_validated(NAME, 4)
    catalogue.record_validated(NAME, 5)
    catalogue.record_screened(NAME, 5, verdict(), "{}")
    catalogue.close()
    catalogue = Catalogue(url)
    assert [row.number for row in catalogue.unfinished()] == [3, 4, 5]
    found = catalogue.recover()
    assert [row.state for row in found.interrupted] == [State.FAILED] * 3
    assert {row.error_code for row in found.interrupted} == {"screening_failed"}
    assert "screened" in (found.interrupted[2].error_message or "")
    assert found.to_load == (waiting,) == catalogue.pending()
    assert catalogue.unfinished() == ()
    assert catalogue.resolve(NAME) == kept
    assert catalogue.recover().interrupted == ()
    catalogue.close()


def test_times_are_utc_and_order_nothing(catalogue_url: str) -> None:
    clock = iter(datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=9))) - timedelta(days=n) for n in range(99))
    catalogue = Catalogue(catalogue_url, now=lambda: next(clock))
    one, two = published(catalogue, 1), published(catalogue, 2)
    assert one.created_at.tzinfo is UTC
    assert two.created_at < one.created_at
    assert catalogue.adapter(NAME).active == 2
    assert catalogue.find_same(NAME, received(2)) == two
    catalogue.close()


# ---- the database ------------------------------------------------------------------------------------------------


def fails(code: Code, words: str = "") -> pytest.RaisesExc[Unavailable]:
    return pytest.RaisesExc(Unavailable, match=f"(?s)^{code.name}: .*{words}")


def test_every_connection_waits_for_the_disk(tmp_path: Path) -> None:
    catalogue = Catalogue(sqlite_url(tmp_path / "c.db"))
    with catalogue._database.reading() as connection:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in wanted}
    assert found == wanted
    catalogue.close()


def test_a_locked_database_is_busy_and_changes_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue(sqlite_url(tmp_path / "c.db"), busy_seconds=0.05)
    published(catalogue, 1)
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with fails(STORE_BUSY):
        begun(catalogue, NAME, received(2))
    with fails(STORE_BUSY):
        Catalogue(sqlite_url(tmp_path / "c.db"), busy_seconds=0.05)
    assert catalogue.resolve(NAME) is not None, "readers are not disturbed"
    other.execute("ROLLBACK")
    other.close()
    assert begun(catalogue, NAME, received(2)).number == 2
    catalogue.close()


@pytest.mark.parametrize("damage", ["header", "pages", "nonsense", "truncated"])
def test_a_damaged_database_is_refused_at_the_start(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.db"
    catalogue = Catalogue(sqlite_url(path))
    for seed in range(40):
        published(catalogue, seed)
    catalogue.close()
    data = bytearray(path.read_bytes())
    assert not Path(f"{path}-wal").exists()
    if damage == "header":
        data[:16] = b"not a database!!"
    if damage == "pages":
        data[4096 + 100 :] = bytes(len(data) - 4196)
    if damage == "nonsense":
        data[:] = b"\xff" * len(data)
    if damage == "truncated":
        del data[len(data) // 2 :]
    path.write_bytes(data)
    with fails(STORE_FAILED, "catalogue"):
        Catalogue(sqlite_url(path))


def test_another_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    Catalogue(sqlite_url(path)).close()
    other = sqlite3.connect(path)
    other.execute("UPDATE schema_info SET version = 77")
    other.commit()
    other.close()
    with fails(STORE_FAILED, f"schema is 77, this gateway knows only {SCHEMA_VERSION}"):
        Catalogue(sqlite_url(path))


BEFORE_SHARING = """
    ALTER TABLE adapters DROP COLUMN key_owner; ALTER TABLE adapters DROP COLUMN bound;
    ALTER TABLE adapters DROP COLUMN traffic;
    ALTER TABLE versions DROP COLUMN key_owner; ALTER TABLE versions DROP COLUMN spelling;
    ALTER TABLE versions DROP COLUMN evaluated; ALTER TABLE versions DROP COLUMN rung;
    ALTER TABLE versions DROP COLUMN failed_evaluation; ALTER TABLE versions DROP COLUMN faults;
    DROP TABLE api_keys; DROP TABLE usage; DROP TABLE usage_batches; DROP TABLE audit_log;
    DROP TABLE tenant_limits; DROP TABLE tenant_budgets; DROP TABLE tenant_slots;
    DROP TABLE webhook_messages; DROP TABLE webhooks; DROP TABLE tenant_rules;
    DROP TABLE deletions; DROP INDEX versions_artefact; DROP TABLE claims; DROP TABLE gateways; DROP TABLE catalogue_state;
    ALTER TABLE versions DROP COLUMN owner; ALTER TABLE versions DROP COLUMN revision; UPDATE schema_info SET version = 2;
"""
"""What takes a catalogue back to schema 2."""


def test_an_older_catalogue_is_brought_up_from_its_reports(tmp_path: Path) -> None:
    url, path = sqlite_url(tmp_path / "c.db"), tmp_path / "c.db"
    catalogue = Catalogue(url)
    measured = verdict([Decision.PRUNE, Decision.PROJECT, Decision.PROJECT, Decision.KEEP])
    for number in (1, 2):
        begun(catalogue, NAME, received(number))
        catalogue.record_validated(NAME, number)
    catalogue.record_screened(NAME, 1, measured, json.dumps({"verdict": verdict_json(measured)}))
    before = tuple(replace(row, revision=0) for row in catalogue.versions(NAME))  # changes were not numbered then
    catalogue.close()
    other = sqlite3.connect(path)
    other.executescript(
        f"{BEFORE_SHARING} ALTER TABLE versions DROP COLUMN modules_projected; UPDATE schema_info SET version = 1"
    )
    other.close()
    for _ in ("brought up", "up already"):
        catalogue = Catalogue(url)
        assert catalogue.versions(NAME) == before
        assert [row.modules_projected for row in before] == [2, None]
        catalogue.close()


def test_what_breaks_while_it_is_brought_up_leaves_the_older_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    Catalogue(sqlite_url(path)).close()
    other = sqlite3.connect(path)
    other.executescript("UPDATE schema_info SET version = 1")  # and the column is there already
    other.close()
    with fails(STORE_FAILED, "modules_projected"):
        Catalogue(sqlite_url(path))
    other = sqlite3.connect(path)
    assert other.execute("SELECT version FROM schema_info").fetchall() == [(1,)]
    other.close()


def test_tables_without_a_version_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE versions (a)")
    other.commit()
    with fails(STORE_FAILED, "no schema version"):
        Catalogue(sqlite_url(path))
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("versions",)]
    other.close()


@pytest.mark.parametrize("url", ["", "nonsense", "nosuch://x", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_leads_nowhere_is_said_so(url: str) -> None:
    with fails(STORE_FAILED, "catalogue"):
        Catalogue(url)


def test_a_directory_in_the_way_is_said_so(tmp_path: Path) -> None:
    with fails(STORE_FAILED):
        Catalogue(sqlite_url(tmp_path))


def test_errors_do_not_show_statements_or_values(catalogue: Catalogue) -> None:
    with catalogue._database.writing() as connection:
        versions.drop(connection)
    with pytest.raises(Unavailable) as caught:
        begun(catalogue, NAME, received("secret"))
    said = caught.value.message
    assert "no such table" in said or "does not exist" in said
    assert "SELECT" not in said
    assert "INSERT" not in said
    assert digest_of(b"config").hex not in said
