"""A real PostgreSQL server of the tests' own: its own directory, a free port, stopped at the end."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from app.store.catalogue.database import sqlite_url

START_S = 60.0
_numbers = count(1)


def binaries() -> Path:
    """Where initdb and postgres lie; root installs Debian's package. Skips, saying why, when they cannot be had."""
    if found := _newest():
        return found
    if os.getuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]
        subprocess.run(
            install, check=False, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    if found := _newest():
        return found
    pytest.skip(
        "no PostgreSQL server: neither /usr/lib/postgresql/*/bin nor initdb on PATH, and none could be installed"
    )


def _newest() -> Path | None:
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return there[-1].parent if there else Path(on_path).parent if on_path else None


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """One cluster. `stop`, `kill` and `start` may follow each other; what was committed is there again."""

    def __init__(self, home: Path, programs: Path) -> None:
        self.home, self.port = home, free_port()
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        owner = pwd.getpwnam("postgres") if os.getuid() == 0 else None  # the server refuses to be root
        self._user = owner.pw_uid if owner else None
        self._group = owner.pw_gid if owner else None
        if owner is not None:
            os.chown(home, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "-D", str(home / "data"), "-A", "trust", "-U", "gateway", "-E", "UTF8", "--no-sync")

    def _command(self, program: str, *words: str) -> list[str]:
        return [str(self._programs / program), *words]

    def _run(self, program: str, *words: str) -> str:
        ran = subprocess.run(
            self._command(program, *words),
            capture_output=True,
            text=True,
            cwd=self.home,
            user=self._user,
            group=self._group,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = (
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "max_connections=200",
            f"unix_socket_directories={self.home}",
        )
        words = ["-D", str(self.home / "data"), "-p", str(self.port)]
        for setting in settings:
            words += ["-c", setting]
        log = (self.home / "log").open("ab")
        self._process = subprocess.Popen(
            self._command("postgres", *words), stdout=log, stderr=log, cwd=self.home, user=self._user, group=self._group
        )
        log.close()
        deadline = time.monotonic() + START_S
        while subprocess.run(self._command("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))).returncode:
            assert self._process.poll() is None, (self.home / "log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT breaks off every session; SIGQUIT does not tidy up either, and the next start recovers."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(START_S)

    def psql(self, sql: str, database: str = "postgres") -> str:
        """What `psql` prints for one statement."""
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "gateway", "-d", database)
        return self._run("psql", *where, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql).strip()

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of one database."""
        return f"postgresql+psycopg://gateway@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """The URL of a database with nothing in it."""
        name = f"catalogue_{next(_numbers)}"
        self.psql(f"CREATE DATABASE {name}")
        return self.url(name)


def make_server() -> Iterator[Server]:
    """A server that runs until it is closed."""
    programs = binaries()
    with tempfile.TemporaryDirectory(prefix="gateway-postgres-") as home:
        server = Server(Path(home), programs)
        server.start()
        yield server
        server.stop(signal.SIGQUIT)  # nothing of it is needed any more: no checkpoint


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server all tests share: each takes a fresh database, none stops it."""
    yield from make_server()


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A server of one test's own, to be stopped and killed."""
    yield from make_server()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalogue_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new catalogue's URL, on each database in turn."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "catalogue.db")
    server: Server = request.getfixturevalue("postgres")
    return server.fresh()
