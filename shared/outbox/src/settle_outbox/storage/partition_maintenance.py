"""Make the partitions of the coming days, and drop those whose retention is over.

Each partition is made or dropped in a separate transaction.

All times are those of the database's clock, because the process's clock may be wrong.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.errors import SettleError
from settle_outbox.storage.catalog import query_runner
from settle_outbox.storage.deadlines import without_deadline
from settle_outbox.storage.partitions import (
    DAY,
    default_partition_name,
    existing_days,
    partition_bounds,
    partition_name,
    read_partitions,
    retention_time,
    wanted_days,
)
from settle_outbox.storage.sqlstate import LOCK_NOT_AVAILABLE, is_unreachable, sqlstate_of
from settle_outbox.uuid7 import lowest_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from settle_outbox.storage.catalog import RunQuery
    from settle_outbox.storage.partitions import Partitioned

log = structlog.get_logger(__name__)

MAINTENANCE_S = 600.0
# A process that waits for a table lock blocks all later queries of the table. So give up early, and
# try again at the next maintenance.
LOCK_TIMEOUT_MS = 500
# Number of rows that one statement moves out of the default partition. Each statement comes after a
# heartbeat.
MOVE_ROWS = 10_000
SKEW_WARN_S = 60.0
# Key of the advisory lock that lets one process at a time change the partitions of a database.
_ADVISORY_KEY = 7_310_021


class PartitionNameTakenError(SettleError):
    """A partition cannot be made, because another table has its name."""


class Maintenance:
    """Maintains the partitions of a table when it is due. The arguments are those of `maintain`.

    Attributes:
        problem: the partitions that the last maintenance could not make or drop, as a sentence for
            the health file. Empty if it did everything.
    """

    def __init__(self, engine: Engine, partitioned: Partitioned, beat: Callable[[], None]) -> None:
        self._engine = engine
        self._partitioned = partitioned
        self._beat = beat
        self._next_at = 0.0
        self.problem = ""

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next maintenance."""
        return time.monotonic() >= self._next_at

    def run(self) -> None:
        """Maintain the partitions. An error is logged, and the next maintenance tries again.

        Delivery continues after an error, because the default partition takes the rows.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        try:
            failed = maintain(self._engine, self._partitioned, beat=self._beat)
        except Exception as error:
            if is_unreachable(error):
                raise
            log.warning("partition.maintenance_failed", exc_info=error)
            failed = [self._partitioned.table]
        self.problem = f"partition upkeep failed: {', '.join(failed)}" if failed else ""
        self._next_at = time.monotonic() + MAINTENANCE_S


def maintain(
    engine: Engine,
    partitioned: Partitioned,
    now: datetime | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[str]:
    """Make the partitions of the coming days, and drop those whose retention is over.

    Any number of processes may call this at once, and each may be killed at any point. A partition
    that others have locked is left for the next call. If a partition cannot be made or dropped, the
    error is logged, and the work continues with the next partition.

    Args:
        engine: of the service's database.
        partitioned: the table.
        now: the time; None for the time of the database's clock.
        beat: writes a heartbeat; called between two pieces of work.

    Returns:
        The names of the partitions that could not be made or dropped.

    Raises:
        SQLAlchemyError: the database cannot be reached.
    """
    table = partitioned.table
    change = _PartitionChange(engine, partitioned, beat)
    with engine.connect() as connection:
        run_query = query_runner(connection)
        now = now or _read_clock(run_query)
        existing = read_partitions(run_query, table)
    for name, reason in existing.foreign.items():
        log.warning("partition.foreign", table=table, partition=name, reason=reason)
    if existing.default is None:
        change.attempt("partition.made", default_partition_name(table), change.make_default)
    with engine.connect() as connection:
        run_query = query_runner(connection)
        wanted = wanted_days(run_query, partitioned, now)
        retained_at = retention_time(run_query, table, now)
    for day in wanted:
        if day not in existing.days:
            name = partition_name(table, day)
            change.attempt("partition.made", name, partial(change.make, day=day))
    for day in sorted(existing.days):
        if retained_at is not None and day + DAY + partitioned.retention <= retained_at:
            name = partition_name(table, day)
            change.attempt("partition.dropped", name, partial(change.drop, day=day))
    return change.failed


class _PartitionChange:
    """Makes and drops partitions, each in a separate transaction.

    Attributes:
        failed: the names of the partitions that could not be made or dropped.
    """

    def __init__(self, engine: Engine, partitioned: Partitioned, beat: Callable[[], None]) -> None:
        self._engine = engine
        self._partitioned = partitioned
        self._table = partitioned.table
        self._beat = beat
        self.failed: list[str] = []

    def attempt(self, event: str, name: str, action: Callable[[Connection], bool]) -> None:
        """Make or drop one partition.

        Args:
            event: of the log line when the partition was changed.
            name: of the partition.
            action: makes or drops it; returns False if there was nothing to do.
        """
        self._beat()
        try:
            with self._engine.begin() as connection:
                without_deadline(connection)
                connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                # Another process that holds this lock may work on another partition. So wait for it
                # up to LOCK_TIMEOUT_MS. If this partition were skipped at once, it would be missing
                # until the next maintenance.
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY}
                )
                if action(connection):
                    log.info(event, partition=name)
        except (SQLAlchemyError, PartitionNameTakenError) as error:
            if is_unreachable(error):
                raise
            if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                log.info("partition.locked", partition=name, instead="later")
                return
            log.warning("partition.failed", partition=name, exc_info=error)
            self.failed.append(name)

    def make_default(self, connection: Connection) -> bool:
        """Create the default partition again after somebody dropped or detached it."""
        if read_partitions(query_runner(connection), self._table).default is not None:
            return False
        name = self._free_name(connection, default_partition_name(self._table))
        connection.execute(text(f"CREATE TABLE {name} PARTITION OF {self._table} DEFAULT"))
        return True

    def make(self, connection: Connection, day: datetime) -> bool:
        """Create a separate table, fill it from the default partition, and attach it.

        CREATE TABLE ... PARTITION OF would block all readers of the parent table, and would fail
        while the default partition has rows of that day. Writers must wait here: the default
        partition would reject a row that was routed to it before the attachment and inserted after
        the attachment.
        """
        existing = read_partitions(query_runner(connection), self._table)
        if day in existing.days:
            return False
        name = self._free_name(connection, partition_name(self._table, day))
        connection.execute(text(f"LOCK TABLE ONLY {self._table} IN SHARE ROW EXCLUSIVE MODE"))
        if existing.default is not None:
            connection.execute(text(f"LOCK TABLE {existing.default} IN ACCESS EXCLUSIVE MODE"))
        connection.execute(
            text(
                f"CREATE TABLE {name} (LIKE {self._table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
                " INCLUDING INDEXES INCLUDING GENERATED INCLUDING STORAGE)"
            )
        )
        if existing.default is not None:
            self._move(connection, existing.default, name, day)
        connection.execute(
            text(f"ALTER TABLE {self._table} ATTACH PARTITION {name} {partition_bounds(day)}")
        )
        return True

    def _move(self, connection: Connection, default: str, name: str, day: datetime) -> None:
        """Move the rows of a day out of the default partition, in pieces."""
        columns = _plain_columns(connection, self._table)
        low, end = lowest_id(day), lowest_id(day + DAY)
        while low < end:
            self._beat()
            after = connection.execute(
                text(
                    f"SELECT id FROM {default} WHERE id >= :low AND id < :end"  # noqa: S608 - our own
                    f" ORDER BY id OFFSET {MOVE_ROWS} LIMIT 1"
                ),
                {"low": low, "end": end},
            ).scalar_one_or_none()
            high = end if after is None else after
            connection.execute(
                text(
                    f"WITH moved AS (DELETE FROM {default} WHERE id >= :low AND id < :high"  # noqa: S608
                    f" RETURNING {columns})"
                    f" INSERT INTO {name} ({columns}) SELECT {columns} FROM moved"
                ),
                {"low": low, "high": high},
            )
            low = high

    def drop(self, connection: Connection, day: datetime) -> bool:
        """Drop a partition, unless it has rows that are still needed."""
        name = partition_name(self._table, day)
        if day not in existing_days(connection, self._table):
            return False
        qualified = f"{_schema(connection, self._table)}.{name}"
        bounds = {"low": lowest_id(day), "high": lowest_id(day + DAY)}
        connection.execute(text(f"LOCK TABLE {qualified} IN ACCESS EXCLUSIVE MODE"))
        if day not in existing_days(connection, self._table):
            return False  # somebody detached it before the lock, in order to keep it
        keep_if, after_drop = self._partitioned.keep_if, self._partitioned.after_drop
        if keep_if and connection.execute(text(keep_if), bounds).scalar_one():
            log.warning("partition.kept", partition=name, reason="it holds unsent events")
            return False
        connection.execute(text(f"DROP TABLE {qualified}"))
        if after_drop:
            connection.execute(text(after_drop), {"high": bounds["high"]})
        return True

    def _free_name(self, connection: Connection, name: str) -> str:
        """Return the qualified name for a new partition.

        Raises:
            PartitionNameTakenError: another table has that name.
        """
        qualified = f"{_schema(connection, self._table)}.{name}"
        if connection.execute(text("SELECT to_regclass(:name)"), {"name": qualified}).scalar_one():
            raise PartitionNameTakenError(
                f"The table {qualified} has the name of a partition of {self._table}, but is not "
                "one. Attach, rename or drop it."
            )
        return qualified


def _read_clock(run_query: RunQuery) -> datetime:
    """Return the database's time. Log a warning if the process's clock is far from it."""
    before = time.time()
    ((now,),) = run_query("SELECT clock_timestamp()", {})
    after, database_s = time.time(), now.timestamp()
    ahead_s = before - database_s if before > database_s else min(0.0, after - database_s)
    if abs(ahead_s) > SKEW_WARN_S:
        # A positive value means that this process is ahead of the database.
        log.warning("clock.skew", seconds=round(ahead_s, 1), database=now.isoformat())
    read: datetime = now.astimezone(UTC)
    return read


def _schema(connection: Connection, table: str) -> str:
    """Return the quoted name of a table's schema, which its partitions must share."""
    schema: str = connection.execute(
        text(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = CAST(:t AS regclass)"
        ),
        {"t": table},
    ).scalar_one()
    return schema


def _plain_columns(connection: Connection, table: str) -> str:
    """Return a list of columns in SQL: all that are not generated, so that INSERT accepts them."""
    names = connection.execute(
        text(
            "SELECT quote_ident(attname) FROM pg_attribute"
            " WHERE attrelid = CAST(:table AS regclass) AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        ),
        {"table": table},
    ).scalars()
    return ", ".join(names)
