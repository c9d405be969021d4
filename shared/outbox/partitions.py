"""Partitions of the outbox and the inbox: one a UTC day, made ahead, dropped after retention.

Both tables are parted by the UUIDv7 that is their key. What finds no partition, because none was
made in time or the id has another form, goes to the default partition and is moved out of it
later: a missing partition never refuses a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from shared.deadlines import without_deadline
from shared.outbox.uuid7 import least_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Connection, Engine

log = structlog.get_logger(__name__)

DAY = timedelta(days=1)
DAYS_AHEAD = 3
# Waiting for a table's lock makes everyone else wait behind; better to come again later.
LOCK_TIMEOUT_MS = 500
_ADVISORY_KEY = 7_310_021  # one process at a time looks after the partitions of a database


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table parted by UUIDv7.

    Args:
        table: its name.
        retention: how long a partition is kept after its day.
        keep_if: a query that is true of a partition that must not go, with ``:low`` and ``:high``.
        after_drop: a statement for the transaction that drops a partition, with ``:high``.
    """

    table: str
    retention: timedelta
    keep_if: str | None = None
    after_drop: str | None = None


def outbox_partitions(retention_s: int) -> Partitioned:
    """The outbox: a partition that holds unsent events is never dropped."""
    return Partitioned(
        table="outbox",
        retention=timedelta(seconds=retention_s),
        keep_if="SELECT EXISTS (SELECT FROM outbox_pending WHERE id >= :low AND id < :high)",
    )


def inbox_partitions(retention_s: int) -> Partitioned:
    """The inbox: with a partition goes the knowledge of its events, and the horizon moves up."""
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


def maintain(engine: Engine, partitioned: Partitioned, now: datetime | None = None) -> None:
    """Make the partitions of the coming days, and drop those past their retention.

    Safe to call from any number of processes at once, and to be cut off anywhere: each partition
    is made or dropped in a transaction of its own. One that is locked by others is left for the
    next call.

    Args:
        engine: of the service's database.
        partitioned: which table.
        now: the time; None for the clock's.
    """
    now = now or datetime.now(UTC)
    with engine.connect() as connection:
        existing = existing_days(connection, partitioned.table)
    for day in _wanted_days(engine, partitioned, now):
        if day not in existing:
            _attempt(engine, partitioned, day, _make)
    for day in sorted(existing):
        if day + DAY + partitioned.retention <= now:
            _attempt(engine, partitioned, day, _drop)


def _attempt(
    engine: Engine,
    partitioned: Partitioned,
    day: datetime,
    action: Callable[[Connection, Partitioned, datetime], bool],
) -> None:
    try:
        with engine.begin() as connection:
            without_deadline(connection)
            connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            # Waited for, for as long as any lock: a day that was passed by because another
            # process was at the next one would be missing until the next call.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
            if action(connection, partitioned, day):
                log.info(
                    f"partition.{action.__name__.strip('_')}",
                    partition=partition_name(partitioned.table, day),
                )
    except OperationalError as error:
        if not _is_lock_timeout(error):
            raise
        log.info(
            "partition.locked", partition=partition_name(partitioned.table, day), instead="later"
        )


def _make(connection: Connection, partitioned: Partitioned, day: datetime) -> bool:
    """Create a table beside, fill it from the default partition, and attach it.

    CREATE TABLE ... PARTITION OF would lock the parent against readers too, and refuses while the
    default partition still holds rows of the range. Writers have to wait: one that found its way
    to the default partition before the new one was attached would be refused there after it.
    """
    table, name = partitioned.table, partition_name(partitioned.table, day)
    if connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one():
        return False
    low, high = least_id(day), least_id(day + DAY)
    bounds = {"low": low, "high": high}
    connection.execute(text(f"LOCK TABLE ONLY {table} IN SHARE ROW EXCLUSIVE MODE"))
    connection.execute(text(f"LOCK TABLE {table}_default IN ACCESS EXCLUSIVE MODE"))
    connection.execute(
        text(
            f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
            " INCLUDING INDEXES INCLUDING GENERATED INCLUDING STORAGE)"
        )
    )
    columns = _plain_columns(connection, table)
    connection.execute(
        text(
            # Names of this module's own making.
            f"WITH moved AS (DELETE FROM {table}_default WHERE id >= :low AND id < :high"  # noqa: S608
            f" RETURNING {columns}) INSERT INTO {name} ({columns}) SELECT {columns} FROM moved"
        ),
        bounds,
    )
    connection.execute(
        text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')")
    )
    return True


def _drop(connection: Connection, partitioned: Partitioned, day: datetime) -> bool:
    """Drop a partition, unless something in it is still needed; asked under its lock."""
    name = partition_name(partitioned.table, day)
    if not connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one():
        return False
    bounds = {"low": least_id(day), "high": least_id(day + DAY)}
    connection.execute(text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"))
    if partitioned.keep_if and connection.execute(text(partitioned.keep_if), bounds).scalar_one():
        log.warning("partition.kept", partition=name, reason="it holds unsent events")
        return False
    connection.execute(text(f"DROP TABLE {name}"))
    if partitioned.after_drop:
        connection.execute(text(partitioned.after_drop), {"high": bounds["high"]})
    return True


def _wanted_days(engine: Engine, partitioned: Partitioned, now: datetime) -> list[datetime]:
    """Today and the days ahead, and earlier days whose rows had to go to the default partition."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ahead = [today + DAY * number for number in range(DAYS_AHEAD + 1)]
    with engine.connect() as connection:
        stray = connection.execute(
            text(
                # The first 48 bits: the time.
                "SELECT DISTINCT substr(id::text, 1, 8) || substr(id::text, 10, 4)"  # noqa: S608
                f" FROM {partitioned.table}_default WHERE id >= :low AND id < :high"
            ),
            {"low": least_id(today - partitioned.retention), "high": least_id(today)},
        ).scalars()
        moments = {datetime.fromtimestamp(int(digits, 16) / 1000, UTC) for digits in stray}
    days = {moment.replace(hour=0, minute=0, second=0, microsecond=0) for moment in moments}
    return sorted({*ahead, *days})


def existing_days(connection: Connection, table: str) -> set[datetime]:
    """The days, by their first moment in UTC, of which a table has a partition."""
    names = connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = CAST(:table AS regclass)"
        ),
        {"table": table},
    ).scalars()
    prefix = f"{table}_p"
    return {
        datetime.strptime(name.removeprefix(prefix), "%Y%m%d").replace(tzinfo=UTC)
        for name in names
        if name.startswith(prefix)
    }


def _plain_columns(connection: Connection, table: str) -> str:
    """The columns that are inserted as they are: all but the generated."""
    names = connection.execute(
        text(
            "SELECT quote_ident(attname) FROM pg_attribute"
            " WHERE attrelid = CAST(:table AS regclass) AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        ),
        {"table": table},
    ).scalars()
    return ", ".join(names)


def partition_name(table: str, day: datetime) -> str:
    """The name of a day's partition."""
    return f"{table}_p{day:%Y%m%d}"


def _is_lock_timeout(error: OperationalError) -> bool:
    return getattr(error.orig, "pgcode", None) == "55P03"  # lock_not_available


def horizon(connection: Connection) -> UUID | None:
    """Where the inbox begins: ids below may have been applied and forgotten. None: it knows all."""
    found: UUID | None = connection.execute(
        text("SELECT before FROM inbox_horizon ORDER BY before DESC LIMIT 1")
    ).scalar_one_or_none()
    return found
