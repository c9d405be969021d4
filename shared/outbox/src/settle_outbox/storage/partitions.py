"""Partitions of the outbox and the inbox: one per UTC day, made ahead, dropped after retention.

Both tables are partitioned by the UUIDv7 that is their key. A row whose partition does not exist,
because nobody made it in time or because the id has another form, goes to the default partition
and is moved out of it later: a missing partition never refuses a row.

Time is the database's, never the process's. What is dropped also depends on the newest row: a
database whose clock is days ahead drops nothing that the newest row says is still to be kept.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.errors import SettleError
from settle_outbox.storage.catalog import query_runner
from settle_outbox.storage.deadlines import without_deadline
from settle_outbox.storage.sqlstate import LOCK_NOT_AVAILABLE, is_unreachable, sqlstate_of
from settle_outbox.uuid7 import lowest_id, moment_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from settle_outbox.storage.catalog import RunQuery

log = structlog.get_logger(__name__)

DAY = timedelta(days=1)
DAYS_AHEAD = 3
MAINTENANCE_S = 600.0
# A waiting table lock blocks all later queries of the table. So give up early, and retry at the
# next maintenance.
LOCK_TIMEOUT_MS = 500
# Rows are moved out of the default partition in pieces, so that heartbeats come in between.
MOVE_ROWS = 10_000
SKEW_WARN_S = 60.0
_ADVISORY_KEY = 7_310_021  # one process at a time looks after the partitions of a database

_PARTITIONS = """
    SELECT c.oid::regclass::text, c.relname::text, c.relnamespace = p.relnamespace,
           pg_get_expr(c.relpartbound, c.oid), i.inhdetachpending
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent
    WHERE i.inhparent = %(table)s::regclass
    ORDER BY 2
"""


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table partitioned by UUIDv7.

    Args:
        table: its name.
        retention: how long a partition is kept after its day.
        keep_if: a query that returns true if the partition from ``:low`` to ``:high`` must be kept.
        after_drop: a statement for the transaction that drops a partition, with ``:high``.
    """

    table: str
    retention: timedelta
    keep_if: str | None = None
    after_drop: str | None = None


@dataclass(slots=True)
class Partitions:
    """The partitions that a table has.

    Args:
        default: the name of the default partition, quoted; None when there is none.
        days: the first moment (UTC) of each day that has a partition of this module's making.
        foreign: other partitions, by their names, with what is odd about them. This module never
            touches them.
    """

    default: str | None = None
    days: set[datetime] = field(default_factory=set)
    foreign: dict[str, str] = field(default_factory=dict)


class PartitionNameTakenError(SettleError):
    """A partition cannot be made."""


class Maintenance:
    """Maintains the partitions of a table when it is due.

    Args:
        engine: of the service's database.
        partitioned: the table.
        beat: writes a heartbeat; called between pieces of work that may take long.
    """

    def __init__(self, engine: Engine, partitioned: Partitioned, beat: Callable[[], None]) -> None:
        self._engine = engine
        self._partitioned = partitioned
        self._beat = beat
        self._next_at = 0.0
        self.trouble = ""
        """What the last maintenance could not do; empty when it did all."""

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next maintenance."""
        return time.monotonic() >= self._next_at

    def run(self) -> None:
        """Maintain the partitions. Trouble is logged and waits until the next time.

        A table without the coming days' partitions still takes rows, so delivery goes on.

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
        self.trouble = f"partition upkeep failed: {', '.join(failed)}" if failed else ""
        self._next_at = time.monotonic() + MAINTENANCE_S


def outbox_partitions(retention_s: int) -> Partitioned:
    """Describe the outbox: a partition that holds unsent events is never dropped."""
    return Partitioned(
        table="outbox",
        retention=timedelta(seconds=retention_s),
        keep_if="SELECT EXISTS (SELECT FROM outbox_pending WHERE id >= :low AND id < :high)",
    )


def inbox_partitions(retention_s: int) -> Partitioned:
    """Describe the inbox. Dropping a partition moves the horizon: its events are forgotten."""
    return Partitioned(
        table="inbox",
        retention=timedelta(seconds=retention_s),
        after_drop="""
            WITH moved AS (DELETE FROM inbox_horizon WHERE before <= :high)
            INSERT INTO inbox_horizon (before)
            SELECT :high WHERE NOT EXISTS (SELECT FROM inbox_horizon WHERE before > :high)
            ON CONFLICT (before) DO NOTHING
        """,
    )


def maintain(
    engine: Engine,
    partitioned: Partitioned,
    now: datetime | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[str]:
    """Make the partitions of the coming days, and drop those past their retention.

    Safe to call from any number of processes at once, and to be cut off anywhere: each partition
    is made or dropped in a transaction of its own. One that is locked by others is left for the
    next call. One that cannot be made or dropped is logged, and the others have their turn.

    Args:
        engine: of the service's database.
        partitioned: which table.
        now: the time; None for the database's clock.
        beat: writes a heartbeat; called between the pieces of the work.

    Returns:
        The names of the partitions that could not be made or dropped.

    Raises:
        SQLAlchemyError: the database cannot be reached.
    """
    table = partitioned.table
    upkeep = _Upkeep(engine, partitioned, beat)
    with engine.connect() as connection:
        run_query = query_runner(connection)
        now = now or _read_clock(run_query)
        existing = read_partitions(run_query, table)
    for name, reason in existing.foreign.items():
        log.warning("partition.foreign", table=table, partition=name, reason=reason)
    if existing.default is None:
        upkeep.attempt("partition.made", _default_name(table), upkeep.make_default)
    with engine.connect() as connection:
        run_query = query_runner(connection)
        wanted = wanted_days(run_query, partitioned, now)
        retained_at = retention_time(run_query, table, now)
    for day in wanted:
        if day not in existing.days:
            name = partition_name(table, day)
            upkeep.attempt("partition.made", name, partial(upkeep.make, day=day))
    for day in sorted(existing.days):
        if retained_at is not None and day + DAY + partitioned.retention <= retained_at:
            name = partition_name(table, day)
            upkeep.attempt("partition.dropped", name, partial(upkeep.drop, day=day))
    return upkeep.failed


def read_partitions(run_query: RunQuery, table: str) -> Partitions:
    """Return a table's partitions.

    A partition of this module's making has the name and the bounds of its day, and lies in the
    table's schema. An operator may have renamed one, or attached others.

    Args:
        run_query: runs a query; see `settle_outbox.storage.catalog`.
        table: the table's name.
    """
    found = Partitions()
    for qualified, name, in_schema, bounds, is_detached in run_query(_PARTITIONS, {"table": table}):
        day = _day_in(table, name)
        if bounds == "DEFAULT":
            found.default = qualified
        elif is_detached:
            found.foreign[qualified] = f"it is half detached; DETACH PARTITION {qualified} FINALIZE"
        elif day is None:
            found.foreign[qualified] = f"its name is not {table}_pYYYYMMDD"
        elif bounds != _bounds(day):
            found.foreign[qualified] = "its bounds are not those of the day in its name"
        elif not in_schema:
            found.foreign[qualified] = f"it is not in the schema of {table}"
        else:
            found.days.add(day)
    return found


def existing_days(connection: Connection, table: str) -> set[datetime]:
    """Return the days, by their first moment in UTC, that have a partition."""
    return read_partitions(query_runner(connection), table).days


def retention_time(run_query: RunQuery, table: str, now: datetime) -> datetime | None:
    """Return the current time for a table's retention, or None to drop nothing.

    It is the time of the newest id that is not later than the database's clock. So a partition
    goes only when both say that it is past its retention. A clock that is days ahead drops nothing
    that is needed; an id from the future does not count. A table without new rows drops
    nothing.

    Args:
        run_query: runs a query; see `settle_outbox.storage.catalog`.
        table: the table's name.
        now: the database's time.
    """
    found = run_query(
        # ORDER BY id alone would mean the text, which no index has.
        f"SELECT t.id::text FROM {table} t WHERE t.id < %(high)s::uuid"  # noqa: S608 - our own names
        " AND substr(t.id::text, 15, 1) = '7' ORDER BY t.id DESC LIMIT 1",
        {"high": str(lowest_id(now + timedelta(milliseconds=1)))},
    )
    return moment_of(UUID(found[0][0])) if found else None


def partition_name(table: str, day: datetime) -> str:
    """Return the name of a day's partition."""
    return f"{table}_p{day:%Y%m%d}"


def is_partition_name(table: str, name: str) -> bool:
    """Return whether a table's partition of a day, or its default partition, has this name."""
    return name == _default_name(table) or _day_in(table, name) is not None


class _Upkeep:
    """Makes and drops partitions, each in a transaction of its own."""

    def __init__(self, engine: Engine, partitioned: Partitioned, beat: Callable[[], None]) -> None:
        self._engine = engine
        self._partitioned = partitioned
        self._table = partitioned.table
        self._beat = beat
        self.failed: list[str] = []

    def attempt(self, done: str, name: str, action: Callable[[Connection], bool]) -> None:
        """Make or drop one partition, and log it as `done`, or log why not."""
        self._beat()
        try:
            with self._engine.begin() as connection:
                without_deadline(connection)
                connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                # Another process may be at another day: to pass this one by would leave it missing
                # until the next maintenance.
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY}
                )
                if action(connection):
                    log.info(done, partition=name)
        except (SQLAlchemyError, PartitionNameTakenError) as error:
            if is_unreachable(error):
                raise
            if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                log.info("partition.locked", partition=name, instead="later")
                return
            log.warning("partition.failed", partition=name, exc_info=error)
            self.failed.append(name)

    def make_default(self, connection: Connection) -> bool:
        """Create the default partition, which somebody has dropped or detached."""
        if read_partitions(query_runner(connection), self._table).default is not None:
            return False
        name = self._free_name(connection, _default_name(self._table))
        connection.execute(text(f"CREATE TABLE {name} PARTITION OF {self._table} DEFAULT"))
        return True

    def make(self, connection: Connection, day: datetime) -> bool:
        """Create a table beside, fill it from the default partition, and attach it.

        CREATE TABLE ... PARTITION OF would lock the parent against readers too, and refuses while
        the default partition still holds rows of the range. Writers have to wait: a row that was
        routed to the default partition before the attachment would be refused there after it.
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
            text(f"ALTER TABLE {self._table} ATTACH PARTITION {name} {_bounds(day)}")
        )
        return True

    def _move(self, connection: Connection, default: str, name: str, day: datetime) -> None:
        """Move a day's rows out of the default partition, in pieces."""
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
        """Drop a partition, unless something in it is still needed. Both are checked locked."""
        name = partition_name(self._table, day)
        if day not in existing_days(connection, self._table):
            return False
        qualified = f"{_schema(connection, self._table)}.{name}"
        bounds = {"low": lowest_id(day), "high": lowest_id(day + DAY)}
        connection.execute(text(f"LOCK TABLE {qualified} IN ACCESS EXCLUSIVE MODE"))
        if day not in existing_days(connection, self._table):
            return False  # detached meanwhile, to be kept
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
            PartitionError: another table has that name.
        """
        qualified = f"{_schema(connection, self._table)}.{name}"
        if connection.execute(text("SELECT to_regclass(:name)"), {"name": qualified}).scalar_one():
            raise PartitionNameTakenError(
                f"{qualified} exists and is not the partition of {self._table} that its name "
                "says. Attach, rename or drop it."
            )
        return qualified


def _read_clock(run_query: RunQuery) -> datetime:
    """Return the database's time, and warn when the process's clock is far from it."""
    before = time.time()
    ((now,),) = run_query("SELECT clock_timestamp()", {})
    after, theirs = time.time(), now.timestamp()
    ahead_s = before - theirs if before > theirs else min(0.0, after - theirs)
    if abs(ahead_s) > SKEW_WARN_S:
        # Positive: this process is ahead of the database.
        log.warning("clock.skew", seconds=round(ahead_s, 1), database=now.isoformat())
    read: datetime = now.astimezone(UTC)
    return read


def wanted_days(run_query: RunQuery, partitioned: Partitioned, now: datetime) -> list[datetime]:
    """Return today, the days ahead, and earlier days that have rows in the default partition."""
    today = _midnight(now)
    days = {today + DAY * number for number in range(DAYS_AHEAD + 1)}
    default = read_partitions(run_query, partitioned.table).default
    low, high = lowest_id(today - partitioned.retention), lowest_id(today)
    while default is not None:
        # One row a day by the index, however many there are.
        found = run_query(
            f"SELECT t.id::text FROM {default} t"  # noqa: S608
            " WHERE t.id >= %(low)s::uuid AND t.id < %(high)s::uuid ORDER BY t.id LIMIT 1",
            {"low": str(low), "high": str(high)},
        )
        if not found:
            break
        day = _midnight(moment_of(UUID(found[0][0])))
        days.add(day)
        low = lowest_id(day + DAY)
    return sorted(days)


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _default_name(table: str) -> str:
    return f"{table}_default"


def _day_in(table: str, name: str) -> datetime | None:
    """Return the day that a partition's name says, or None if it is no such name."""
    match = re.fullmatch(rf"{table}_p(\d{{8}})", name, re.ASCII)
    try:
        return datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def _bounds(day: datetime) -> str:
    return f"FOR VALUES FROM ('{lowest_id(day)}') TO ('{lowest_id(day + DAY)}')"


def _schema(connection: Connection, table: str) -> str:
    """Return the schema of a table, quoted: a partition belongs into the same one."""
    schema: str = connection.execute(
        text(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = CAST(:t AS regclass)"
        ),
        {"t": table},
    ).scalar_one()
    return schema


def _plain_columns(connection: Connection, table: str) -> str:
    """Return the columns that are inserted as they are: all but the generated ones."""
    names = connection.execute(
        text(
            "SELECT quote_ident(attname) FROM pg_attribute"
            " WHERE attrelid = CAST(:table AS regclass) AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        ),
        {"table": table},
    ).scalars()
    return ", ".join(names)
