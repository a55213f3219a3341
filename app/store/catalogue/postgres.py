"""PostgreSQL as the catalogue's database: sessions and locks do the work of SQLite's file lock.

Writers queue on one advisory lock, so that each transaction excludes other writers as in SQLite: every guarantee of the
catalogue (numbers, names, aliases) rests on the same code. Transactions here take milliseconds. A reader sees one
snapshot.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from app.domain.errors import NO_SPACE, STORE_AWAY, STORE_BUSY, STORE_FAILED, Code, Unavailable

WRITERS_KEY: Final = 0x6C6F72612D676174
"""Key of the advisory lock all writers of a catalogue take ("lora-gat"); PostgreSQL separates these by database."""

CONNECT_SECONDS: Final = 5
"""Timeout of one connection attempt, seconds: a host that drops packets must not hold a request for minutes."""

VANISHED_SECONDS: Final = 20
"""Longest time without any sign of the server's host, seconds; then the connection is given up. A host that loses its power
or its network says nothing, and the kernel alone would go on for a quarter of an hour."""

STATEMENT_SECONDS: Final = 60
"""Longest statement, seconds; ours take milliseconds, a migration of a large catalogue longer."""

IDLE_SECONDS: Final = 15
"""Longest silence inside a transaction, seconds: a gateway stopped while writing must not block the others for ever."""

AGAIN_SECONDS: Final = 1.0
"""Seconds between two attempts to reach a server at start."""

OLDEST: Final = 130_000
"""Oldest server version (13.0) that is known to work."""

_CODES: Final[dict[str, Code]] = {
    "55P03": STORE_BUSY,  # lock_not_available: lock_timeout ran out
    "57014": STORE_BUSY,  # query_canceled: statement_timeout
    "40001": STORE_BUSY,  # serialization_failure
    "40P01": STORE_BUSY,  # deadlock_detected
    "53100": NO_SPACE,  # disk_full
    "53300": STORE_AWAY,  # too_many_connections
    "25006": STORE_AWAY,  # read_only_sql_transaction: this became a standby
    "25P03": STORE_AWAY,  # idle_in_transaction_session_timeout
    "57P01": STORE_AWAY,  # admin_shutdown
    "57P02": STORE_AWAY,  # crash_shutdown
    "57P03": STORE_AWAY,  # cannot_connect_now: starting, or recovering
}
"""SQLSTATE → error code for the caller (PostgreSQL manual, appendix A)."""

_CONNECTION: Final = "08"
_log = logging.getLogger("gateway")


def postgres_engine(url: URL, busy_seconds: float) -> Engine:
    """Return a pool of connections for this URL, by psycopg even if it names another driver.

    busy_seconds: longest wait for a lock. Raises Unavailable STORE_FAILED if psycopg is not installed. Nothing is
    connected yet.
    """
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,  # a server that was restarted leaves dead connections behind
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "tcp_user_timeout": VANISHED_SECONDS * 1000,
            },
        )
    except ImportError as error:
        raise Unavailable(STORE_FAILED, "catalogue: PostgreSQL needs the extra `postgres` (psycopg)") from error

    def on_connect(connection: Any, _record: object) -> None:
        _check(connection)
        limits = {
            "lock_timeout": int(busy_seconds * 1000),
            "statement_timeout": STATEMENT_SECONDS * 1000,
            "idle_in_transaction_session_timeout": IDLE_SECONDS * 1000,
        }
        for name, milliseconds in limits.items():
            connection.execute(f"SET {name} = {milliseconds}")
        # a commit is on the disk when it returns; an operator's stronger choice (remote_apply) is left alone
        off = "current_setting('synchronous_commit') = 'off'"
        connection.execute(f"SELECT set_config('synchronous_commit', 'on', false) WHERE {off}")
        connection.commit()

    event.listen(engine, "connect", on_connect)
    return engine


def wait_for_writers(connection: Connection) -> None:
    """Wait for other writers to finish, and exclude them until this transaction ends."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_KEY})")


def with_patience(prepare: Callable[[], None], patience_s: float) -> None:
    """Call `prepare` until the server answers: a database often starts beside its gateway, and is ready later.

    Raises the errors of `prepare`; Unavailable STORE_AWAY, with the server's or the network's message, after
    `patience_s`.
    """
    began = time.monotonic()
    while True:
        try:
            return prepare()
        except Unavailable as error:
            if error.code is not STORE_AWAY:
                raise
            waited = time.monotonic() - began
            if waited >= patience_s:  # at start the operator reads this: the server's own message helps
                words = getattr(error.__cause__, "orig", None) or error.message
                raise Unavailable(STORE_AWAY, f"catalogue, after {waited:.0f} s: {words}") from error
            _log.warning("waiting for the catalogue's database: %.0f of %.0f s", waited, patience_s)
            time.sleep(min(AGAIN_SECONDS, patience_s - waited))


def _check(connection: Any) -> None:
    if connection.info.server_version < OLDEST:
        raise Unavailable(
            STORE_FAILED, f"catalogue: PostgreSQL {connection.info.server_version} is older than {OLDEST}"
        )


def said_by_postgres(error: DBAPIError) -> Unavailable:
    """Convert the server's error, without statement and values, and without addresses: those go to the log."""
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state is None or state.startswith(_CONNECTION):
        code = STORE_AWAY
    else:
        code = _CODES.get(state, STORE_FAILED)
    if code is STORE_AWAY:
        _log.warning("catalogue: %s", error.orig)
        return Unavailable(code, "the catalogue's database does not answer")
    words = getattr(getattr(error.orig, "diag", None), "message_primary", None) or type(error.orig).__name__
    return Unavailable(code, f"catalogue: {words} ({state})")
