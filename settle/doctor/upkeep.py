"""Whether the tables that change most are vacuumed, and the partitions of the days are made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from settle.doctor.check import duration, fail, ok, warn
from settle_outbox.settings import read_settings
from settle_outbox.storage.partitions import DAY, partition_name, read_partitions, retention_time
from settle_outbox.uuid7 import moment_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle.doctor.check import Check
    from settle.doctor.database import Database

HOT_TABLES = {
    "orders": ("outbox_pending", "outbox_shards", "orders"),
    "payments": ("outbox_pending", "outbox_shards", "accounts"),
}
# Of what makes autovacuum begin: it does not keep up, or cannot.
DEAD_WARN_TIMES = 10
DEAD_LEAST = 10_000
# What is past its retention goes within the ten minutes between two looks of relay and consumer.
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


def check_autovacuum(database: Database) -> Iterator[Check]:
    """Whether the hot tables are vacuumed: the relay's reading slows down with dead rows."""
    name = f"{database.service} autovacuum"
    ((is_on,),) = database.ask(
        "SELECT current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean"
    )
    if not is_on:
        yield fail(name, "off on the server", "set autovacuum and track_counts to on")
        return
    found = database.ask(_HOT, [list(HOT_TABLES[database.service])])
    off = [table for table, _, _, enabled, _ in found if not enabled]
    if off:
        remedy = "ALTER TABLE ... RESET (autovacuum_enabled)"
        yield fail(name, f"off for {', '.join(off)}", remedy)
        return
    late = [
        f"{table}: {dead} dead rows, vacuumed {_ago(vacuumed_s)}"
        for table, dead, begins_at, _, vacuumed_s in found
        if dead > max(DEAD_LEAST, DEAD_WARN_TIMES * begins_at)
    ]
    if late:
        yield warn(
            name,
            "; ".join(late),
            "VACUUM it; look for a long transaction, and at autovacuum_vacuum_cost_limit",
        )
    else:
        table, dead, *_ = found[0]
        yield ok(name, f"on, keeps up (most dead rows: {dead}, in {table})")


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"


def check_partitions(database: Database) -> Iterator[Check]:
    """Whether the days' partitions are there, and the old ones go."""
    settings = read_settings(database.service)
    yield _check_table(database, "outbox", settings.outbox_retention_s, "relay")
    yield _check_table(database, "inbox", settings.inbox_retention_s, "consumer")


def _check_table(database: Database, table: str, retention_s: int, keeper: str) -> Check:
    name = f"{database.service} {table} parts"
    there = read_partitions(database.ask, table)
    if there.default is None:
        return fail(
            name,
            "there is no default partition: a row of a day without partition is refused",
            f"start the {keeper} of {database.service}: it makes {table}_default",
        )
    now = _clock(database)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    foreign = "; ".join(f"{each}: {reason}" for each, reason in there.foreign.items())
    missing = [partition_name(table, day) for day in (today, today + DAY) if day not in there.days]
    if missing:
        found = f"missing: {', '.join(missing)}; rows go to {there.default}"
        return warn(
            name,
            f"{found}. {foreign}" if foreign else found,
            f"start the {keeper} of {database.service}: it makes them, and moves the rows; see "
            "partition.failed in its log",
        )
    if foreign:
        return warn(
            name,
            foreign,
            f"rename it back, or detach it: the {keeper} leaves it alone, also after its retention",
        )
    # Rows whose ids are no UUIDv7 stay in the default partition, and count as strays as well.
    ((stray,),) = database.ask(
        f"SELECT count(*) FROM (SELECT FROM {there.default} LIMIT {STRAY_LIMIT}) AS stray"  # noqa: S608
    )
    if stray:
        return warn(
            name,
            f"{stray} rows in {there.default}",
            f"the {keeper} moves those of known days; the others stay: their ids carry no time",
        )
    retained_at = retention_time(database.ask, table, now)
    expired = timedelta(seconds=retention_s) + EXPIRED_WARN_DAYS * DAY
    old = [
        partition_name(table, day)
        for day in sorted(there.days)
        if retained_at is not None and day + DAY + expired <= retained_at
    ]
    if old:
        return warn(
            name,
            f"past retention, and still there: {', '.join(old)}",
            f"see partition.kept, partition.locked and partition.failed in the log of the {keeper}",
        )
    return ok(name, f"{len(there.days)} days, tomorrow's among them")


def check_horizon(database: Database) -> Iterator[Check]:
    """Check that the inbox knows every event that may still come."""
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
    late = timedelta(seconds=settings.topic_retention_s + settings.replay_window_s)
    remedy = "see docs/how-to/wrong-horizon.md"
    if begins > now:
        yield fail(name, f"{shown} is in the future: all events are parked until then", remedy)
    elif begins > now - late:
        yield warn(
            name,
            f"{shown}: events from before it are parked, and may still come by a replay",
            remedy,
        )
    else:
        yield ok(name, f"the inbox knows its events since {shown}")


def _clock(database: Database) -> datetime:
    """Return the database's time; by this one the partitions are made and dropped."""
    ((now,),) = database.ask("SELECT clock_timestamp()")
    read: datetime = now.astimezone(UTC)
    return read
