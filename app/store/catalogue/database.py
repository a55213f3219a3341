"""SQL database: opened, checked, and used in whole transactions. SQLite by default, PostgreSQL by its URL.

For PostgreSQL see postgres.py. For SQLite: WAL, synchronous=FULL (a commit is on the disk when it returns), foreign
keys, a bounded wait for locks, and BEGIN IMMEDIATE for writers, so that two of them queue instead of failing half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_FULL, SQLITE_LOCKED
from sqlite3 import Error as SqliteError
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.domain.errors import NO_SPACE, STORE_BUSY, STORE_FAILED, Unavailable
from app.store.artefacts.files import disk_errors, sync_directory
from app.store.catalogue.migrate import migrate, still_ours
from app.store.catalogue.postgres import postgres_engine, said_by_postgres, wait_for_writers, with_patience
from app.store.failpoints import failpoint

BUSY_SECONDS: Final = 10.0
"""Longest wait for another connection's write, seconds: far above any transaction here, below a client's timeout."""

_WRITES: Final = "gateway_writes"
ONE_MOMENT: Final[dict[str, dict[str, Any]]] = {
    "sqlite": {},  # every transaction sees one snapshot
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}
"""Execution options, by dialect, that make a transaction of several SELECTs see one snapshot."""


def sqlite_url(path: Path) -> str:
    """Return the URL of the SQLite database in this file."""
    return f"sqlite:///{path.resolve()}"


def is_shared(url: str) -> bool:
    """Return whether several gateways may open the catalogue at this URL: not if it is a SQLite file."""
    return url.startswith("postgresql")


class Database:
    """Pool of connections. Thread-safe: each transaction has a connection of its own."""

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS, patience_s: float = 0.0) -> None:
        """Open the database and check it; create its tables if it is new, migrate them if they are older.

        patience_s: seconds to wait, logging it, for a server that does not answer yet. Raises Unavailable: STORE_FAILED
        if it is damaged, unreadable or of another schema version; STORE_BUSY if another process keeps it locked for
        longer than `busy_seconds`; STORE_AWAY if the server did not answer in time.
        """
        with database_errors():
            self._engine: Final = _engine(url, busy_seconds)
        self._writers: Final = self._engine.execution_options(**{_WRITES: True})
        self._readers: Final = self._engine.execution_options(**ONE_MOMENT[self._engine.dialect.name])
        try:
            with_patience(self._prepare, patience_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection; those in use as soon as they are returned."""
        event.listen(self._engine, "checkin", lambda _, record: record.invalidate())
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Run a transaction that sees one snapshot of the database. Raises Unavailable."""
        with database_errors(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Run a transaction that excludes other writers: on the disk when the block ends, rolled back if it raises.

        Raises Unavailable; STORE_FAILED if the tables no longer have this gateway's schema.
        """
        with self._exclusive() as connection:
            still_ours(connection)
            yield connection

    @contextmanager
    def _exclusive(self) -> Iterator[Connection]:
        with database_errors():
            with self._writers.begin() as connection:
                yield connection
                failpoint("catalogue.before_commit")
            failpoint("catalogue.after_commit")

    @contextmanager
    def beside(self) -> Iterator[Connection]:
        """Run a write that need not exclude others and must not wait for them: this gateway's own rows, a sum's growth.

        On SQLite it is like any other write: a transaction that reads first could fail instead of waiting.
        """
        if not self.shared:
            with self.writing() as connection:
                yield connection
            return
        with database_errors(), self._engine.begin() as connection:
            still_ours(connection)
            yield connection

    @property
    def shared(self) -> bool:
        """True if several gateways may have this catalogue open."""
        return self._engine.dialect.name == "postgresql"

    def _prepare(self) -> None:
        with self._exclusive() as connection:
            if connection.dialect.name == "sqlite":
                _check_pages(connection)
            migrate(connection)
        if self._engine.dialect.name == "sqlite" and self._engine.url.database:
            with disk_errors("sync the catalogue's directory"):
                sync_directory(Path(self._engine.url.database).parent)


def _check_pages(connection: Connection) -> None:
    findings = connection.exec_driver_sql("PRAGMA quick_check(1)").scalars().all()
    if findings != ["ok"]:
        raise Unavailable(STORE_FAILED, f"the catalogue is damaged: {findings[0] if findings else 'unreadable'}")


def _engine(url: str, busy_seconds: float) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        engine = postgres_engine(parsed, busy_seconds)
        event.listen(engine, "begin", _on_postgres_begin)
        return engine
    if parsed.get_backend_name() != "sqlite":
        raise ArgumentError("the catalogue is kept in sqlite:/// or postgresql://")
    if not parsed.database or parsed.database == ":memory:":
        raise ArgumentError("the catalogue needs a file: sqlite:///path/to/catalogue.db")
    with disk_errors(f"catalogue {parsed.database}"):
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None  # transactions begin in _on_begin, not when the driver decides
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_postgres_begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES, False):
        wait_for_writers(connection)


@contextmanager
def database_errors() -> Iterator[None]:
    """Convert the database's errors into Unavailable, without statements or values."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, SqliteError):
            raise said_by_postgres(error) from error
        kind = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the primary code; the higher bits are details
        code = {SQLITE_BUSY: STORE_BUSY, SQLITE_LOCKED: STORE_BUSY, SQLITE_FULL: NO_SPACE}.get(kind, STORE_FAILED)
        raise Unavailable(code, f"catalogue: {error.orig}") from error
    except PoolTimeout as error:
        raise Unavailable(STORE_BUSY, "catalogue: every connection is in use") from error
    except SQLAlchemyError as error:
        raise Unavailable(STORE_FAILED, f"catalogue: {error}") from error
