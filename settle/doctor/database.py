"""A service's database: whether it answers, its version, its migrations, its size."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from settle.doctor.check import fail, ok, size, warn
from settle.stack.databases import revision
from settle.stack.definition import DATABASE_URLS
from settle_outbox.storage.database import connect_autocommit
from shared.migrations import head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg2

    from settle.doctor.check import Check

APPLICATION_NAME = "settle-doctor"
LEAST_MAJOR = 14
NEWEST_TRIED_MAJOR = 18
STATEMENT_TIMEOUT_MS = 5_000
LOCK_TIMEOUT_MS = 2_000
WARN_SIZE_BYTES = 500 * 10**9


class Database:
    """A connection to a service's database, on which each question has a time limit.

    Args:
        service: whose it is.
        url: ``postgresql+psycopg2://...``.

    Raises:
        psycopg2.OperationalError: it cannot be reached.
    """

    def __init__(self, service: str, url: str) -> None:
        self.service = service
        self.url = url
        self._connection = connect_autocommit(url, application_name=APPLICATION_NAME)
        # Of each transaction, not of the session: behind a pooler that one is others' as well.
        self._connection.autocommit = False
        self._connection.readonly = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def version(self) -> int:
        """Of the server, as it counts: 180006 is 18.6."""
        return self._connection.server_version

    @cached_property
    def revision(self) -> str | None:
        """The migration that it is at; None when it has seen none.

        Raises:
            psycopg2.Error: it cannot be asked.
        """
        return revision(self.url)

    @property
    def is_migrated(self) -> bool:
        """Whether it is at the code's revision."""
        return self.revision == head(self.service)

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._connection.closed)

    def ask(
        self, query: str, parameters: Mapping[str, Any] | Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """The rows of a query, in a read-only transaction of its own.

        Raises:
            psycopg2.Error: it fails, or takes longer than 5 s.
        """
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(
                f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS};"
                f" SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
            )
            cursor.execute(query, parameters or None)
            return cursor.fetchall()


def unreachable(service: str, error: psycopg2.Error) -> Check:
    """The line for a database that does not answer."""
    found = f"{' '.join(str(error).split())}; nothing else of it was looked at"
    remedy = f"start it, or correct {DATABASE_URLS[service]}; settle logs postgres for an embedded"
    return fail(f"{service} db", found, f"{remedy} one")


def check_version(database: Database) -> Iterator[Check]:
    """Whether the server is of a supported version."""
    yield judge_version(f"{database.service} db", database.version)


def judge_version(name: str, version: int) -> Check:
    """Judge a server's version, as it counts: 180006 is 18.6."""
    major, minor = divmod(version, 10_000)
    found = f"reached, PostgreSQL {major}.{minor}"
    if major < LEAST_MAJOR:
        return fail(name, found, f"upgrade it: PostgreSQL {LEAST_MAJOR} at the least")
    if major > NEWEST_TRIED_MAJOR:
        return warn(
            name,
            f"{found}, newer than what this was tried on",
            f"try it before you rely on it: {NEWEST_TRIED_MAJOR} was the newest",
        )
    return ok(name, found)


def check_migrations(database: Database) -> Iterator[Check]:
    """Whether it is at the newest revision."""
    name = f"{database.service} migrations"
    if database.is_migrated:
        yield ok(name, f"at revision {database.revision}")
        return
    found = f"at revision {database.revision}, the code needs {head(database.service)}"
    remedy = f"settle up migrates it, or alembic -n {database.service} upgrade head"
    yield fail(name, found, remedy)


_DURABILITY = """
    SELECT name, setting FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')
      AND setting IN ('off', 'local')
    ORDER BY name
"""


def check_durability(database: Database) -> Iterator[Check]:
    """Whether a commit that was answered is there after a crash.

    The broker is told of an offset, or a client of an order, when the transaction is committed.
    """
    name = f"{database.service} durability"
    weak = dict(database.ask(_DURABILITY))
    off = ", ".join(f"{setting}=off" for setting, value in weak.items() if value == "off")
    remedy = "switch it on, for the server, the database and the role"
    if weak.get("synchronous_commit") == "off":
        yield fail(name, f"{off}: a crash of the server loses what it has committed", remedy)
    elif off:
        yield warn(name, f"{off}: a crash of the machine may ruin the database", remedy)
    else:
        # `local` waits for this server's disk, and not for a standby's.
        whose = "this server's disk, not for a standby's" if weak else "the disk"
        yield ok(name, f"commits wait for {whose}")


def check_size(database: Database) -> Iterator[Check]:
    """How large it is, and what the most of it is."""
    name = f"{database.service} size"
    ((whole,),) = database.ask("SELECT pg_database_size(current_database())")
    largest = database.ask(
        """
        SELECT coalesce(parent.relname, c.relname) AS name,
               sum(pg_total_relation_size(c.oid))::bigint AS weight
        FROM pg_class c
        LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        LEFT JOIN pg_class parent ON parent.oid = i.inhparent
        WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
        GROUP BY 1 ORDER BY 2 DESC LIMIT 3
        """
    )
    parts = ", ".join(f"{table} {size(weight)}" for table, weight in largest)
    found = f"{size(whole)} ({parts})"
    if whole > WARN_SIZE_BYTES:
        yield warn(name, found, "shorten OUTBOX_RETENTION_S and INBOX_RETENTION_S, or see to disk")
    else:
        yield ok(name, found)
