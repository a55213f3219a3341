"""One SQL database: opened, checked, and used in whole transactions. SQLite by default, the URL decides.

For SQLite: WAL, synchronous=FULL (a commit is on the disk when it returns), foreign keys, a bounded wait for locks, and
BEGIN IMMEDIATE for writers, so that two of them queue instead of failing half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_FULL, SQLITE_LOCKED
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from app.errors import NO_SPACE, STORE_BUSY, STORE_FAILED, Unavailable
from app.store.disk import disk_errors, sync_directory
from app.store.failpoints import failpoint
from app.store.migrate import migrate
from app.store.schema import SCHEMA_VERSION, metadata, schema_info

BUSY_SECONDS: Final = 10.0
"""Seconds to wait for another connection's write: far above any transaction here, below a client's patience."""

_WRITES: Final = "gateway_writes"


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite database in this file."""
    return f"sqlite:///{path.resolve()}"


class Database:
    """A pool of connections. Safe for threads: each transaction has a connection of its own."""

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS) -> None:
        """Open the database and check it; make its tables when it is new, bring them up when they are older.

        Raises Unavailable: STORE_FAILED when it is damaged, unreadable or of another schema version; STORE_BUSY when
        another process keeps it locked for longer than `busy_seconds`.
        """
        with database_errors():
            self._engine: Final = _engine(url, busy_seconds)
        self._writers: Final = self._engine.execution_options(**{_WRITES: True})
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database. Raises Unavailable."""
        with database_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction alone among writers: on the disk when the block ends, undone when it raises."""
        with database_errors():
            with self._writers.begin() as connection:
                yield connection
                failpoint("catalogue.before_commit")
            failpoint("catalogue.after_commit")

    def _prepare(self) -> None:
        with self.writing() as connection:
            if connection.dialect.name == "sqlite":
                _check_pages(connection)
            if not inspect(connection).has_table(schema_info.name):
                _create(connection)
            migrate(connection)
            found = connection.execute(select(schema_info.c.version)).scalars().all()
        if found != [SCHEMA_VERSION]:
            known = ", ".join(str(version) for version in found) or "none"
            raise Unavailable(STORE_FAILED, f"catalogue schema is {known}, this gateway knows only {SCHEMA_VERSION}")
        if self._engine.dialect.name == "sqlite" and self._engine.url.database:
            with disk_errors("sync the catalogue's directory"):
                sync_directory(Path(self._engine.url.database).parent)


def _create(connection: Connection) -> None:
    others = set(inspect(connection).get_table_names()) & set(metadata.tables)
    if others:
        raise Unavailable(STORE_FAILED, f"the database has tables {sorted(others)} but no schema version")
    metadata.create_all(connection)
    connection.execute(insert(schema_info).values(version=SCHEMA_VERSION))


def _check_pages(connection: Connection) -> None:
    findings = connection.exec_driver_sql("PRAGMA quick_check(1)").scalars().all()
    if findings != ["ok"]:
        raise Unavailable(STORE_FAILED, f"the catalogue is damaged: {findings[0] if findings else 'unreadable'}")


def _engine(url: str, busy_seconds: float) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if not parsed.database or parsed.database == ":memory:":
        raise ArgumentError("the catalogue needs a file: sqlite:///path/to/catalogue.db")
    with disk_errors(f"catalogue {parsed.database}"):
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None  # transactions begin in _on_begin, not where the driver thinks best
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what the database says into Unavailable, without statements or values."""
    try:
        yield
    except DBAPIError as error:
        kind = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the primary code; above it are details
        code = {SQLITE_BUSY: STORE_BUSY, SQLITE_LOCKED: STORE_BUSY, SQLITE_FULL: NO_SPACE}.get(kind, STORE_FAILED)
        raise Unavailable(code, f"catalogue: {error.orig}") from error
    except SQLAlchemyError as error:
        raise Unavailable(STORE_FAILED, f"catalogue: {error}") from error
