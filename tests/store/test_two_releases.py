"""An old gateway and a new one on one catalogue: neither brings the other's tables into disorder."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.domain.errors import STORE_BUSY, STORE_FAILED, Unavailable
from app.store.catalogue import migrate
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.tables import SCHEMA_VERSION
from app.store.cluster.leases import LEASE_S
from app.store.cluster.peers import Peers
from tests.store.making import NAME, published, stored
from tests.store.test_peers import silent
from tests.support.gateway import OpenHouse, form
from tests.support.postgres import Server

NEXT = SCHEMA_VERSION + 1
REVISION = f'''"""What the next release might bring."""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT:04}"
down_revision = "{SCHEMA_VERSION:04}"


def upgrade() -> None:
    op.add_column("versions", sa.Column("colour", sa.String(8), nullable=False, server_default="red"))
'''


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.fresh()


@contextmanager
def next_release(root: Path) -> Iterator[None]:
    """What is opened inside is opened by a gateway whose schema is one further."""
    scripts = Path(shutil.copytree(migrate.SCRIPTS, root / "migrations", dirs_exist_ok=True))
    (scripts / "versions" / f"v{NEXT:04}_colour.py").write_text(REVISION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "SCRIPTS", scripts)
        patch.setattr(migrate, "SCHEMA_VERSION", NEXT)
        yield


def schema(postgres: Server, url: str) -> str:
    return postgres.psql("SELECT version FROM schema_info", url.rpartition("/")[2])


def test_a_new_gateway_does_not_migrate_under_an_old_one_that_lives(postgres: Server, url: str, tmp_path: Path) -> None:
    old, catalogue = Peers(url), Catalogue(url)
    row = published(catalogue)
    with next_release(tmp_path), pytest.raises(Unavailable, match="1 gateways of an older release") as caught:
        Peers(url)
    assert caught.value.code is STORE_BUSY
    assert schema(postgres, url) == str(SCHEMA_VERSION)
    assert stored(catalogue, 2).number == row.number + 1  # the old one goes on
    old.leave()
    with next_release(tmp_path):
        new = Peers(url)
        assert schema(postgres, url) == str(NEXT)
        new.leave()
    catalogue.close()


def test_an_old_gateway_that_was_thought_dead_writes_nothing_to_the_newer_tables(
    postgres: Server, url: str, tmp_path: Path
) -> None:
    old, catalogue = Peers(url), Catalogue(url)
    row = published(catalogue)
    silent(postgres, url, old, LEASE_S + 1)
    with next_release(tmp_path):
        new = Peers(url)
    assert row.artefact is not None
    digest = row.artefact
    refusal = f"has schema {NEXT} now, by another release; this gateway knows {SCHEMA_VERSION} and writes no more"
    for write in (
        lambda: stored(catalogue, 2),
        lambda: catalogue.delete(NAME),
        old.beat,
        lambda: old.keep(digest),
    ):
        with pytest.raises(Unavailable, match=refusal) as caught:
            write()
        assert caught.value.code is STORE_FAILED
    database = url.rpartition("/")[2]
    assert postgres.psql("SELECT count(*), max(state) FROM versions", database) == "1|ready"
    assert postgres.psql("SELECT count(*) FROM claims", database) == "0"
    old.leave()  # says so in the log, and does no harm
    with next_release(tmp_path):
        new.leave()
    catalogue.close()


def test_an_old_gateway_does_not_open_newer_tables(postgres: Server, url: str, tmp_path: Path) -> None:
    with next_release(tmp_path):
        Catalogue(url).close()
    with pytest.raises(Unavailable, match=f"schema is {NEXT}, this gateway knows only {SCHEMA_VERSION}"):
        Catalogue(url)
    assert schema(postgres, url) == str(NEXT)


def test_on_sqlite_too_the_next_write_is_refused(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "c.sqlite")
    old = Catalogue(url)
    published(old)
    with next_release(tmp_path):
        Catalogue(url).close()
    with pytest.raises(Unavailable, match="writes no more"):
        stored(old, 2)
    old.close()


async def test_an_upload_to_an_old_gateway_is_refused_and_what_it_serves_goes_on(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway() as running:
        assert (await running.http.post("/adapters", files=form("bard"))).status_code == 201
        with next_release(tmp_path):
            await asyncio.to_thread(Catalogue(sqlite_url(running.data / "catalogue.sqlite")).close)
        refused = await running.http.post("/adapters", files=form("bard", seed=2))
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "store_failed")
        asked = {"model": "bard", "messages": [{"role": "user", "content": "x"}]}
        assert (await running.http.post("/v1/chat/completions", json=asked)).status_code == 200
