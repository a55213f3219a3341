"""One machine's store becomes a shared one: `store move` to a real PostgreSQL server and to S3-compatible storage."""

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.domain.errors import GatewayError
from app.domain.names import AdapterName
from app.domain.policy_override import PolicyOverride
from app.domain.tenant_limits import TenantLimits
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.migrate_store import BATCH, move_catalogue
from tests.store.making import NAME, artefact, begun, published, received, stored
from tests.support.gateway import OpenHouse, form
from tests.support.postgres import Server
from tests.support.s3 import Storage, storage

__all__ = ["storage"]

OTHER = AdapterName("other")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory: an adapter with two versions, one deleted, one begun, and a damaged artefact nobody needs."""
    home = tmp_path / "data"
    home.mkdir()
    with BlobStore(home / "artefacts") as blobs:
        for seed in (1, 2, 3, 4):
            blobs.put(artefact(seed))
        damaged = blobs.path(artefact(4).digest) / "adapter_model.safetensors"
        damaged.chmod(0o644)
        damaged.write_bytes(b"other")
    catalogue = Catalogue(sqlite_url(home / "catalogue.sqlite"))
    published(catalogue, 1)
    published(catalogue, 2)
    published(catalogue, 3, OTHER)
    catalogue.delete(OTHER)
    catalogue.close()
    return home


def moved(data: Path, *words: str) -> str:
    """What the command prints, its error too."""
    done = subprocess.run(
        [sys.executable, "-m", "app", "store", "move", "--data", data, *words], capture_output=True, text=True
    )
    return f"{done.returncode} {done.stdout} {done.stderr}"


def test_a_catalogue_is_the_same_on_the_other_side_and_goes_on(data: Path, postgres: Server) -> None:
    url = postgres.fresh()
    said = moved(data, "--to", url)
    assert said.startswith("0 2 adapters, 3 versions: copied, read back and found equal"), said
    old, new = Catalogue(sqlite_url(data / "catalogue.sqlite")), Catalogue(url)
    assert new.adapters() == old.adapters()
    assert new.versions(NAME) == old.versions(NAME)
    assert [new.report(NAME, n) for n in (1, 2)] == [old.report(NAME, n) for n in (1, 2)]
    assert new.resolve(NAME) == old.resolve(NAME)
    assert stored(new, 7).number == 3  # ids and numbers go on behind those that were moved
    assert stored(new, 3, OTHER).number == 2
    old.close()
    new.close()


def test_what_tenants_were_given_moves_with_them(data: Path, postgres: Server) -> None:
    url, old = postgres.fresh(), Catalogue(sqlite_url(data / "catalogue.sqlite"))
    for tenant in ("acme", "Zeta", "beta"):
        old.limits.set(tenant.lower(), TenantLimits(adapters=len(tenant)))
        old.tenant_rules.set_override(tenant.lower(), PolicyOverride(max_removed_share=0.2))
    said = moved(data, "--to", url)
    assert "3 tenant limits, 3 tenant rules" in said, said
    new = Catalogue(url)
    assert new.tenant_rules.of("acme") == old.tenant_rules.of("acme")
    assert new.limits.changed_since(0) == old.limits.changed_since(0)
    old.close()
    new.close()


def test_a_second_time_is_success_and_another_catalogue_is_refused(data: Path, postgres: Server) -> None:
    url = postgres.fresh()
    assert moved(data, "--to", url).startswith("0 ")
    assert moved(data, "--to", url).startswith("0 2 adapters, 3 versions")
    catalogue = Catalogue(url)
    row = stored(catalogue, 9)
    catalogue.close()
    said = moved(data, "--to", url)
    assert said.startswith("1 ")
    assert "not empty" in said
    catalogue = Catalogue(url)
    assert catalogue.version(NAME, row.number) == row
    catalogue.close()


async def test_a_gateway_that_runs_is_not_moved_under_its_feet(open_gateway: OpenHouse, postgres: Server) -> None:
    url = postgres.fresh()
    async with open_gateway() as running:
        said = await asyncio.to_thread(moved, running.data, "--to", url)
        assert said.startswith("1 ")
        assert "held by another gateway" in said
    assert postgres.psql("SELECT count(*) FROM pg_tables WHERE tablename = 'adapters'", url.rpartition("/")[2]) == "0"


def test_what_arrives_otherwise_is_not_kept(data: Path, postgres: Server) -> None:
    url = postgres.fresh()
    Catalogue(url).close()
    database = url.rpartition("/")[2]
    postgres.psql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.weights_bytes := NEW.weights_bytes + 1; RETURN NEW; END $$",
        database,
    )
    postgres.psql("CREATE TRIGGER t BEFORE INSERT ON versions FOR EACH ROW EXECUTE FUNCTION spoil()", database)
    with pytest.raises(GatewayError, match="what arrived is not what was sent; nothing was kept"):
        move_catalogue(sqlite_url(data / "catalogue.sqlite"), url)
    assert postgres.psql("SELECT count(*) FROM adapters", database) == "0"
    postgres.psql("DROP TRIGGER t ON versions", database)
    assert move_catalogue(sqlite_url(data / "catalogue.sqlite"), url) == {"adapters": 2, "versions": 3}


def test_a_server_that_goes_away_in_between_leaves_nothing_and_it_can_be_done_again(
    data: Path, own_postgres: Server
) -> None:
    url = own_postgres.fresh()
    Catalogue(url).close()
    database = url.rpartition("/")[2]
    own_postgres.psql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$",
        database,
    )
    own_postgres.psql("CREATE TRIGGER t BEFORE INSERT ON versions FOR EACH ROW EXECUTE FUNCTION wait()", database)
    command = [sys.executable, "-m", "app", "store", "move", "--data", str(data), "--to", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as moving:
        while own_postgres.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "0":
            assert moving.poll() is None
        own_postgres.stop(signal.SIGQUIT)
        said, _ = moving.communicate(timeout=60)
    assert moving.returncode == 1, said
    own_postgres.start()
    assert own_postgres.psql("SELECT count(*) FROM adapters", database) == "0"
    own_postgres.psql("DROP TRIGGER t ON versions", database)
    assert moved(data, "--to", url).startswith("0 2 adapters, 3 versions")


def test_more_rows_than_are_read_at_once(tmp_path: Path, postgres: Server) -> None:
    source, url = sqlite_url(tmp_path / "c.sqlite"), postgres.fresh()
    catalogue = Catalogue(source)
    for seed in range(BATCH + 7):
        begun(catalogue, NAME, received(seed))
    catalogue.close()
    assert move_catalogue(source, url) == {"adapters": 1, "versions": BATCH + 7}


def test_artefacts_go_to_the_storage_and_a_broken_off_move_goes_on(data: Path, storage: Storage) -> None:
    storage.faults.other = f"{artefact(2).digest.hex}/adapter_model.safetensors"
    said = moved(data, "--artefacts-to", storage.url)
    assert said.startswith("1 "), said
    assert "does not read back" in said
    storage.faults.other = None
    said = moved(data, "--artefacts-to", storage.url)
    assert said.startswith("0 "), said
    assert "3 artefacts in s3://bucket/gateway, read back and found whole" in said
    assert "1 damaged artefacts that no version needs were left out" in said


def test_a_damaged_artefact_that_is_needed_ends_it(data: Path, storage: Storage) -> None:
    whole = data / "artefacts" / artefact(1).digest.hex
    whole.chmod(0o755)
    shutil.rmtree(whole)
    said = moved(data, "--artefacts-to", storage.url)
    assert said.startswith("1 "), said
    assert artefact(1).digest.short in said


async def test_a_gateway_serves_from_where_everything_was_moved_to(
    open_gateway: OpenHouse, postgres: Server, storage: Storage, tmp_path: Path
) -> None:
    url = postgres.fresh()
    async with open_gateway() as running:
        pushed = await running.http.post("/adapters", files=form("bard"))
        assert pushed.status_code == 201
        home = running.data
    said = await asyncio.to_thread(moved, home, "--to", url, "--artefacts-to", storage.url)
    assert said.startswith("0 "), said
    shutil.move(home, tmp_path / "old")  # a machine that has nothing but the two URLs
    async with open_gateway(catalogue_url=url, store_url=storage.url) as running:
        again = await running.http.post("/adapters", files=form("bard"))
        assert (again.status_code, again.json()["digest"]) == (200, pushed.json()["digest"])
        assert any(name.startswith("bard@") for name in running.simulator.loaded)


@pytest.mark.parametrize("words", [(), ("--to", "sqlite:///x")])
def test_there_must_be_somewhere_to_move_to(data: Path, words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, ["store", "move", "--data", str(data), *words]).exit_code != 0


def test_where_no_catalogue_is_none_is_made(tmp_path: Path) -> None:
    said = moved(tmp_path, "--to", "postgresql://nobody@127.0.0.1:1/x")
    assert "holds no catalogue" in said
    assert list(tmp_path.iterdir()) == []
