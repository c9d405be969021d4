"""Check a service's database: connection, version, durability and size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from settle_outbox.checks.check import fail, ok, size, warn
from settle_outbox.settings import service_variable
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg2

    from settle_outbox.checks.check import Finding

APPLICATION_NAME = "outbox-doctor"
OLDEST_MAJOR = 14
NEWEST_TESTED_MAJOR = 18
STATEMENT_TIMEOUT_MS = 5_000
LOCK_TIMEOUT_MS = 2_000
WARN_SIZE_BYTES = 500 * 10**9


class Database:
    """A read-only connection to a service's database, with a time limit for each query.

    Args:
        service: the service's name.
        url: ``postgresql+psycopg2://...``.

    Raises:
        psycopg2.OperationalError: the database cannot be reached.
    """

    def __init__(self, service: str, url: str) -> None:
        self.service = service
        self.url = url
        self._connection = connect_autocommit(url, application_name=APPLICATION_NAME)
        # Read-only and the time limits are set for each transaction, not for the session: behind a
        # pooler, other clients use the same session.
        self._connection.autocommit = False
        self._connection.readonly = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def version(self) -> int:
        """The server's version as PostgreSQL counts it: 180006 is 18.6."""
        return self._connection.server_version

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._connection.closed)

    def ask(
        self, query: str, parameters: Mapping[str, Any] | Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a query in a read-only transaction, and return its rows.

        Raises:
            psycopg2.Error: the query fails, or takes longer than 5 s.
        """
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(
                f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS};"
                f" SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
            )
            cursor.execute(query, parameters or None)
            return cursor.fetchall()


def unreachable(service: str, error: psycopg2.Error) -> Finding:
    """Return the finding about a database that does not answer."""
    return fail(
        f"{service} db",
        f"{' '.join(str(error).split())}; its other checks were left out",
        f"start the database, or correct {service_variable(service, 'DATABASE_URL')}",
    )


def judge_version(name: str, version: int) -> Finding:
    """Judge a server's version, as PostgreSQL counts it: 180006 is 18.6."""
    major, minor = divmod(version, 10_000)
    found = f"reached, PostgreSQL {major}.{minor}"
    if major < OLDEST_MAJOR:
        return fail(name, found, f"upgrade it to PostgreSQL {OLDEST_MAJOR} or later")
    if major > NEWEST_TESTED_MAJOR:
        return warn(
            name,
            f"{found}, newer than the tested versions",
            f"test it first: {NEWEST_TESTED_MAJOR} is the newest tested version",
        )
    return ok(name, found)


_DURABILITY = """
    SELECT name, setting FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')
      AND setting IN ('off', 'local')
    ORDER BY name
"""


def check_durability(database: Database) -> Iterator[Finding]:
    """Check that a commit survives a crash of the server.

    As soon as a transaction is committed, an API confirms a request, and a consumer commits its
    Kafka offsets. If the server lost the transaction then, nobody would repeat it.
    """
    name = f"{database.service} durability"
    weak = dict(database.ask(_DURABILITY))
    off = ", ".join(f"{setting}=off" for setting, value in weak.items() if value == "off")
    remedy = "switch it on for the server, the database and the role"
    if weak.get("synchronous_commit") == "off":
        yield fail(name, f"{off}: a crash of the server loses committed transactions", remedy)
    elif off:
        yield warn(name, f"{off}: a crash of the machine may destroy the database", remedy)
    else:
        # `local` waits for this server's disk, but not for a standby's.
        disk = "this server's disk, not for a standby's" if weak else "the disk"
        yield ok(name, f"commits wait for {disk}")


def check_size(database: Database) -> Iterator[Finding]:
    """Check the size of the database, and name its largest tables."""
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
        remedy = "shorten OUTBOX_RETENTION_S and INBOX_RETENTION_S, or add disk space"
        yield warn(name, found, remedy)
    else:
        yield ok(name, found)
