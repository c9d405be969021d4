"""Partitions of the outbox and the inbox: one per UTC day, made ahead, dropped after retention.

Both tables are partitioned by the UUIDv7 that is their key. A row whose partition does not exist,
because nobody made it in time or because the id has another form, goes to the default partition
and is moved out of it later: a missing partition never refuses a row.

Time is the database's, never the process's. What is dropped also depends on the newest row: a
database whose clock is days ahead drops nothing that the newest row says is still to be kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from settle_outbox.storage.catalog import query_runner
from settle_outbox.uuid7 import lowest_id, moment_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from settle_outbox.storage.catalog import RunQuery

DAY = timedelta(days=1)
DAYS_AHEAD = 3
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
        elif bounds != partition_bounds(day):
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
    return name == default_partition_name(table) or _day_in(table, name) is not None


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


def default_partition_name(table: str) -> str:
    """Return the name of a table's default partition."""
    return f"{table}_default"


def _day_in(table: str, name: str) -> datetime | None:
    """Return the day that a partition's name says, or None if it is no such name."""
    match = re.fullmatch(rf"{table}_p(\d{{8}})", name, re.ASCII)
    try:
        return datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def partition_bounds(day: datetime) -> str:
    """Return the SQL clause with the bounds of a day's partition."""
    return f"FOR VALUES FROM ('{lowest_id(day)}') TO ('{lowest_id(day + DAY)}')"
