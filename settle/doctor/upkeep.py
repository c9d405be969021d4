"""Whether the tables that change most are vacuumed, and the partitions of the days are made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from settle.doctor.check import duration, fail, ok, warn
from shared.outbox.partitions import DAY, partition_name
from shared.settings import read_settings

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
    there = {
        partition
        for (partition,) in database.ask(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = %s::regclass",
            [table],
        )
    }
    today = datetime.now(UTC)
    wanted = [partition_name(table, today), partition_name(table, today + DAY)]
    missing = [partition for partition in wanted if partition not in there]
    if missing:
        return warn(
            name,
            f"missing: {', '.join(missing)}; rows go to {table}_default",
            f"start the {keeper} of {database.service}: it makes them, and moves the rows",
        )
    # Rows whose ids are no UUIDv7 stay in the default partition, and count as strays as well.
    ((stray,),) = database.ask(
        f"SELECT count(*) FROM (SELECT FROM {table}_default LIMIT {STRAY_LIMIT}) AS stray"  # noqa: S608
    )
    if stray:
        return warn(
            name,
            f"{stray} rows in {table}_default",
            f"the {keeper} moves those of known days; the others stay: their ids carry no time",
        )
    expired_s = retention_s + EXPIRED_WARN_DAYS * DAY.total_seconds()
    before = partition_name(table, datetime.fromtimestamp(today.timestamp() - expired_s, UTC))
    old = sorted(partition for partition in there if f"{table}_p" < partition < before)
    if old:
        return warn(
            name,
            f"past retention, and still there: {', '.join(old)}",
            f"see partition.kept and partition.locked in the log of the {keeper}",
        )
    return ok(name, f"{len(there) - 1} days, tomorrow's among them")
