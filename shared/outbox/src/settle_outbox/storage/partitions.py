"""The table partitions of the outbox and the inbox: one for each UTC day.

Both tables are partitioned by their primary key, a UUIDv7, which contains its time. Each table also
has a default partition. It takes rows whose partition is missing and rows whose id is not a UUIDv7,
so an INSERT never fails because of a missing partition.

This module defines the names of partitions, and reads them. `partition_maintenance` makes and drops
partitions.
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
        keep_if: a query. It returns true if the partition from ``:low`` to ``:high`` must be kept.
        after_drop: a statement that runs in the transaction that drops a partition. Its parameter
            is ``:high``.
    """

    table: str
    retention: timedelta
    keep_if: str | None = None
    after_drop: str | None = None


@dataclass(slots=True)
class Partitions:
    """The partitions that a table has.

    Args:
        default: the quoted name of the default partition, or None if it is missing.
        days: the days that have a partition, each as its first moment in UTC.
        foreign: the reason why a partition is not a day's, by quoted name. For example, an operator
            renamed or attached it. Maintenance never changes these partitions.
    """

    default: str | None = None
    days: set[datetime] = field(default_factory=set)
    foreign: dict[str, str] = field(default_factory=dict)


def outbox_partitions(retention_s: int) -> Partitioned:
    """Describe the outbox. A partition with unsent events is never dropped."""
    return Partitioned(
        table="outbox",
        retention=timedelta(seconds=retention_s),
        keep_if="SELECT EXISTS (SELECT FROM outbox_pending WHERE id >= :low AND id < :high)",
    )


def inbox_partitions(retention_s: int) -> Partitioned:
    """Describe the inbox. When a partition is dropped, the horizon moves, because ids are lost."""
    return Partitioned(
        table="inbox",
        retention=timedelta(seconds=retention_s),
        after_drop="""
            WITH moved AS (DELETE FROM inbox_horizon WHERE before < :high)
            INSERT INTO inbox_horizon (before)
            SELECT :high WHERE NOT EXISTS (SELECT FROM inbox_horizon WHERE before > :high)
            ON CONFLICT (before) DO NOTHING
        """,
    )


def read_partitions(run_query: RunQuery, table: str) -> Partitions:
    """Return the partitions of a table.

    The partition of a day has the name and the bounds of that day, and is in the table's schema.
    All others count as foreign, except the default partition.
    """
    partitions = Partitions()
    for qualified, name, in_schema, bounds, is_detached in run_query(_PARTITIONS, {"table": table}):
        day = _day_in(table, name)
        if bounds == "DEFAULT":
            partitions.default = qualified
        elif is_detached:
            partitions.foreign[qualified] = (
                f"it is half detached; DETACH PARTITION {qualified} FINALIZE"
            )
        elif day is None:
            partitions.foreign[qualified] = f"its name is not {table}_pYYYYMMDD"
        elif bounds != partition_bounds(day):
            partitions.foreign[qualified] = "its bounds are not those of the day in its name"
        elif not in_schema:
            partitions.foreign[qualified] = f"it is not in the schema of {table}"
        else:
            partitions.days.add(day)
    return partitions


def existing_days(connection: Connection, table: str) -> set[datetime]:
    """Return the days that have a partition, each as its first moment in UTC."""
    return read_partitions(query_runner(connection), table).days


def retention_time(run_query: RunQuery, table: str, now: datetime) -> datetime | None:
    """Return the time from which a table's retention counts back, or None to drop nothing.

    It is the time of the newest id that is not in the future. A partition is dropped only if both
    the database's clock and the newest id say that its retention is over. So a clock that is days
    ahead drops nothing that is still needed.

    Args:
        run_query: on the service's database.
        table: its name.
        now: the database's time.
    """
    newest = run_query(
        # `ORDER BY id` would sort by the text in the select list, which has no index.
        f"SELECT t.id::text FROM {table} t WHERE t.id < %(high)s::uuid"  # noqa: S608 - our own names
        " AND substr(t.id::text, 15, 1) = '7' ORDER BY t.id DESC LIMIT 1",
        {"high": str(lowest_id(now + timedelta(milliseconds=1)))},
    )
    return moment_of(UUID(newest[0][0])) if newest else None


def partition_name(table: str, day: datetime) -> str:
    """Return the name of the partition of a day."""
    return f"{table}_p{day:%Y%m%d}"


def is_partition_name(table: str, name: str) -> bool:
    """Return whether this is the name of a day's partition or of the default partition."""
    return name == default_partition_name(table) or _day_in(table, name) is not None


def wanted_days(run_query: RunQuery, partitioned: Partitioned, now: datetime) -> list[datetime]:
    """Return the days that need a partition.

    These are today, the `DAYS_AHEAD` days after it, and each earlier day within the retention that
    has rows in the default partition.
    """
    today = _midnight(now)
    days = {today + DAY * number for number in range(DAYS_AHEAD + 1)}
    default = read_partitions(run_query, partitioned.table).default
    low, high = lowest_id(today - partitioned.retention), lowest_id(today)
    while default is not None:
        # Find the first row of the next day by the index. So the rows of a day are not read.
        oldest = run_query(
            f"SELECT t.id::text FROM {default} t"  # noqa: S608
            " WHERE t.id >= %(low)s::uuid AND t.id < %(high)s::uuid ORDER BY t.id LIMIT 1",
            {"low": str(low), "high": str(high)},
        )
        if not oldest:
            break
        day = _midnight(moment_of(UUID(oldest[0][0])))
        days.add(day)
        low = lowest_id(day + DAY)
    return sorted(days)


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def default_partition_name(table: str) -> str:
    """Return the name of a table's default partition."""
    return f"{table}_default"


def _day_in(table: str, name: str) -> datetime | None:
    """Return the day in a partition's name, or None if the name has another form."""
    match = re.fullmatch(rf"{table}_p(\d{{8}})", name, re.ASCII)
    try:
        return datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def partition_bounds(day: datetime) -> str:
    """Return the SQL clause for the bounds of a day's partition."""
    return f"FOR VALUES FROM ('{lowest_id(day)}') TO ('{lowest_id(day + DAY)}')"
