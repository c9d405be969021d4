"""Check the upkeep of the tables: autovacuum, the daily partitions, and the inbox's horizon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from settle_outbox.checks.check import duration, fail, ok, warn
from settle_outbox.settings import read_settings
from settle_outbox.storage.partitions import DAY, partition_name, read_partitions, retention_time
from settle_outbox.uuid7 import moment_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from settle_outbox.checks.check import Finding
    from settle_outbox.checks.database import Database

# The tables of settle_outbox that change most.
HOT_TABLES = ("outbox_pending", "outbox_shards")
# Autovacuum does not keep up if a table has more than this many times the dead rows that start
# autovacuum, and more than `DEAD_MIN`.
DEAD_WARN_TIMES = 10
DEAD_MIN = 10_000
# Relays and consumers drop expired partitions about every ten minutes. A delay of days is a fault.
EXPIRED_WARN_DAYS = 2
STRAY_LIMIT = 10_000

_HOT = """
    SELECT c.relname,
           s.n_dead_tup,
           coalesce(option.threshold, current_setting('autovacuum_vacuum_threshold')::float)
           + coalesce(option.scale, current_setting('autovacuum_vacuum_scale_factor')::float)
             * greatest(c.reltuples, 0),
           coalesce(option.enabled, true),
           extract(epoch FROM now() - greatest(s.last_vacuum, s.last_autovacuum))::float
    FROM pg_class c
    JOIN pg_stat_user_tables s ON s.relid = c.oid
    CROSS JOIN LATERAL (
        SELECT max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold')::float,
               max(option_value)
                   FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor')::float,
               bool_and(option_value::boolean) FILTER (WHERE option_name = 'autovacuum_enabled')
        FROM pg_options_to_table(c.reloptions)
    ) AS option (threshold, scale, enabled)
    WHERE c.relname = ANY(%s) AND c.relnamespace = current_schema()::regnamespace
    ORDER BY s.n_dead_tup DESC
"""


def check_autovacuum(database: Database, tables: Sequence[str]) -> Iterator[Finding]:
    """Check that the tables that change most are vacuumed: dead rows slow down the relay."""
    name = f"{database.service} autovacuum"
    ((is_on,),) = database.ask(
        "SELECT current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean"
    )
    if not is_on:
        yield fail(name, "off on the server", "set autovacuum and track_counts to on")
        return
    found = database.ask(_HOT, [list(tables)])
    off = [table for table, _, _, enabled, _ in found if not enabled]
    if off:
        remedy = "ALTER TABLE ... RESET (autovacuum_enabled)"
        yield fail(name, f"off for {', '.join(off)}", remedy)
        return
    late = [
        f"{table}: {dead} dead rows, vacuumed {_ago(vacuumed_s)}"
        for table, dead, begins_at, _, vacuumed_s in found
        if dead > max(DEAD_MIN, DEAD_WARN_TIMES * begins_at)
    ]
    if late:
        yield warn(
            name,
            "; ".join(late),
            "run VACUUM; look for a long transaction, and check autovacuum_vacuum_cost_limit",
        )
    else:
        table, dead, *_ = found[0]
        yield ok(name, f"on, keeps up (most dead rows: {dead} in {table})")


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"


def check_partitions(database: Database) -> Iterator[Finding]:
    """Check that the partitions of today and tomorrow exist, and that expired ones are dropped."""
    settings = read_settings(database.service)
    yield _check_table(database, "outbox", settings.outbox_retention_s, "relay")
    yield _check_table(database, "inbox", settings.inbox_retention_s, "consumer")


def _check_table(database: Database, table: str, retention_s: int, keeper: str) -> Finding:
    name = f"{database.service} {table} parts"
    partitions = read_partitions(database.ask, table)
    if partitions.default is None:
        return fail(
            name,
            "no default partition: a row of a day without a partition is refused",
            f"start the {keeper} of {database.service}: it creates {table}_default",
        )
    now = _clock(database)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    foreign = "; ".join(f"{each}: {reason}" for each, reason in partitions.foreign.items())
    missing = [
        partition_name(table, day) for day in (today, today + DAY) if day not in partitions.days
    ]
    if missing:
        found = f"missing: {', '.join(missing)}; rows go to {partitions.default}"
        return warn(
            name,
            f"{found}. {foreign}" if foreign else found,
            f"start the {keeper} of {database.service}: it creates them and moves the rows; look"
            " for partition.failed in its log",
        )
    if foreign:
        return warn(
            name,
            foreign,
            f"rename it back, or detach it: the {keeper} ignores it, even when it has expired",
        )
    # The count includes rows that stay in the default partition, because their ids are no UUIDv7.
    ((stray,),) = database.ask(
        f"SELECT count(*) FROM (SELECT FROM {partitions.default} LIMIT {STRAY_LIMIT}) AS stray"  # noqa: S608
    )
    if stray:
        return warn(
            name,
            f"{stray} rows in {partitions.default}",
            f"none: the {keeper} moves rows of known days; ids without a time stay there",
        )
    retained_at = retention_time(database.ask, table, now)
    expired = timedelta(seconds=retention_s) + EXPIRED_WARN_DAYS * DAY
    old = [
        partition_name(table, day)
        for day in sorted(partitions.days)
        if retained_at is not None and day + DAY + expired <= retained_at
    ]
    if old:
        return warn(
            name,
            f"past retention, but not dropped: {', '.join(old)}",
            f"look for partition.kept, partition.locked and partition.failed in the {keeper}'s log",
        )
    return ok(name, f"{len(partitions.days)} days, up to tomorrow or later")


def check_horizon(database: Database) -> Iterator[Finding]:
    """Check that the inbox remembers every event that may still come."""
    name = f"{database.service} horizon"
    settings = read_settings(database.service)
    found = database.ask(
        "SELECT h.before::text FROM inbox_horizon h ORDER BY h.before DESC LIMIT 1"
    )
    if not found:
        yield ok(name, "nothing was dropped from the inbox yet")
        return
    begins, now = moment_of(UUID(found[0][0])), _clock(database)
    shown = f"{begins:%Y-%m-%d %H:%M:%S} UTC"
    max_delay = timedelta(seconds=settings.topic_retention_s + settings.replay_window_s)
    remedy = "see docs/how-to/wrong-horizon.md"
    if begins > now:
        yield fail(name, f"{shown} is in the future: all events become dead letters", remedy)
    elif begins > now - max_delay:
        yield warn(
            name,
            f"{shown}: older events become dead letters, and may still come by a replay",
            remedy,
        )
    else:
        yield ok(name, f"the inbox remembers its events since {shown}")


def _clock(database: Database) -> datetime:
    """Return the database's time, by which partitions are created and dropped."""
    ((now,),) = database.ask("SELECT clock_timestamp()")
    read: datetime = now.astimezone(UTC)
    return read
