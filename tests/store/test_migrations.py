"""The tables the revisions make are the tables the code asks, on both databases, and old catalogues keep opening."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect

from app.domain.errors import STORE_FAILED, Unavailable
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.migrate import SCRIPTS
from app.store.catalogue.tables import SCHEMA_VERSION
from app.store.catalogue.tenant_tables import metadata
from tests.store.making import NAME, published
from tests.store.test_catalogue import BEFORE_SHARING
from tests.support.postgres import Server


@pytest.fixture
def engine(catalogue_url: str) -> Iterator[Engine]:
    made = create_engine(catalogue_url)
    yield made
    made.dispose()


def test_the_revisions_make_the_tables_the_code_asks(catalogue_url: str, engine: Engine) -> None:
    Catalogue(catalogue_url).close()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == f"{SCHEMA_VERSION:04}"


def test_each_schema_version_has_one_revision() -> None:
    script = ScriptDirectory(SCRIPTS)
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions == [f"{number:04}" for number in range(SCHEMA_VERSION, 0, -1)]


def test_a_catalogue_from_before_alembic_opens_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    catalogue = Catalogue(sqlite_url(path))
    row = replace(published(catalogue), revision=0)  # what was there before changes were numbered
    catalogue.close()
    other = sqlite3.connect(path)
    other.executescript(f"{BEFORE_SHARING} DROP TABLE alembic_version")
    other.commit()
    for _ in range(2):
        catalogue = Catalogue(sqlite_url(path))
        assert catalogue.resolve(NAME) == row
        catalogue.close()
    assert other.execute("SELECT version_num FROM alembic_version").fetchall() == [(f"{SCHEMA_VERSION:04}",)]
    other.close()


def test_gateways_that_open_a_new_catalogue_at_once_make_it_once(postgres: Server) -> None:
    url = postgres.fresh()
    with ThreadPoolExecutor(4) as pool:
        for catalogue in pool.map(lambda _: Catalogue(url), range(4)):
            catalogue.close()
    assert postgres.psql("SELECT * FROM alembic_version", url.rpartition("/")[2]) == f"{SCHEMA_VERSION:04}"


def test_another_schema_is_refused_and_left_alone(postgres: Server) -> None:
    url = postgres.fresh()
    Catalogue(url).close()
    postgres.psql("UPDATE schema_info SET version = 77", url.rpartition("/")[2])
    with pytest.raises(Unavailable, match=f"schema is 77, this gateway knows only {SCHEMA_VERSION}") as caught:
        Catalogue(url)
    assert caught.value.code is STORE_FAILED
    assert postgres.psql("SELECT version FROM schema_info", url.rpartition("/")[2]) == "77"


def test_strangers_tables_are_not_touched(postgres: Server) -> None:
    url = postgres.fresh()
    postgres.psql("CREATE TABLE versions (a INTEGER)", url.rpartition("/")[2])
    with pytest.raises(Unavailable, match="no schema version"):
        Catalogue(url)
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == ["versions"]
    engine.dispose()
